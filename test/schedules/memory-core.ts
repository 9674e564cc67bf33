// The native core over memory in which every 256 bytes are one number: the checkpoint that they came from. Writes and exchanges
// take place piece by piece, with anything in between; what lies in files outlives the process that wrote it.

import {
  type Arena,
  type Cancel,
  type Control,
  type ControlPage,
  type Device,
  type DeviceFacts,
  type FileLock,
  type Half,
  type LayerProgram,
  NATIVE_ABI,
  type NativeCore,
  OP_FIELDS,
  SLICE_FIELDS,
  type Span,
} from "../../native/native.js";
import type { Files } from "../../worker/rank-arena.js";

/** A host's files. */
export interface Disk {
  /** Live halves by path. */
  arenas: Map<string, Uint32Array>;
  /** What their files begin with. */
  headers: Map<string, Uint8Array>;
  /** The other half, while the process that has it lives. */
  staging: Uint32Array | null;
  pages: Map<string, ControlPage>;
  /** Who has which lock, by path; the kernel takes them away with the process. */
  locks: Map<string, HeldLock[]>;
}

export interface HeldLock {
  /** The process, or whatever stands for one. */
  owner: object;
  kind: "shared" | "exclusive";
}

/** What the owner had of it before is given back first. */
export function tryLock({ locks }: Disk, path: string, { owner, kind }: HeldLock): boolean {
  const others = (locks.get(path) ?? []).filter((held) => held.owner !== owner);
  const isFree = kind === "exclusive" ? others.length === 0 : others.every((held) => held.kind === "shared");
  locks.set(path, isFree ? [...others, { owner, kind }] : others);
  return isFree;
}

export function unlock({ locks }: Disk, path: string, owner: object): void {
  const others = (locks.get(path) ?? []).filter((held) => held.owner !== owner);
  locks.set(path, others);
}

/** The process has died. */
export function releaseLocks(disk: Disk, owner: object): void {
  for (const path of disk.locks.keys()) unlock(disk, path, owner);
}

export interface CoreOptions {
  disk: Disk;
  /** Whose locks are its. */
  owner: object;
  /** Settles when the native thread's next piece of work is done. */
  piece(): Promise<void>;
  /** Before bytes of the live file at `path` change that somebody may still read: not those of an arena found torn. */
  beforeLiveWrite(path: string): void;
  /** Checkpoints whose bytes cannot be used. */
  bad: Set<number>;
  gone: Set<number>;
}

const BYTES_A_NUMBER = 256;
/** What staging holds before anything is written to it. */
export const POISON = 0;

interface MemoryArena {
  path: string;
  live: Uint32Array;
  staging: Uint32Array | null;
}

/** Pages that were odd when their process began say `torn`, as in the real core. */
export function createMemoryCore({ disk, owner, piece, beforeLiveWrite, bad, gone }: CoreOptions): NativeCore {
  disk.staging = null;
  const arenas = new Map<Arena, MemoryArena>();
  const controls = new Map<Control, { path: string; tornGeneration: number }>();
  const lockPaths = new Map<FileLock, string>();
  const cancelled = new WeakSet<Cancel>();
  let isTorn = false;
  const heedWrite = (path: string) => {
    if (!isTorn) beforeLiveWrite(path);
  };

  const arenaOf = (arena: Arena) => found(arenas.get(arena));
  const pageOf = (control: Control) => found(disk.pages.get(found(controls.get(control)).path));

  function read(control: Control): ControlPage {
    const page = pageOf(control);
    if (page.generation % 2 === 0) return { ...page };
    const isFound = page.generation === found(controls.get(control)).tornGeneration;
    return { ...page, state: isFound ? "torn" : "swapping" };
  }

  async function write({ path, live, staging }: MemoryArena, half: Half, program: LayerProgram, cancel: Cancel) {
    const to = half === "live" ? live : found(staging);
    let sum = 0;
    for (const { first, count, checkpoint } of pieces(program)) {
      if (cancelled.has(cancel)) throw nativeError("NATIVE_CANCELLED", {});
      await piece(); // what has begun is done, whatever has been cancelled meanwhile
      if (gone.has(checkpoint)) throw nativeError("NATIVE_SOURCE_NOT_FOUND", { file: 0 });
      if (bad.has(checkpoint)) throw nativeError("NATIVE_SOURCE_CHANGED", { file: 0 });
      if (half === "live") heedWrite(path);
      to.fill(checkpoint, first, first + count);
      sum += checkpoint * count;
    }
    return sum;
  }

  return {
    abi: NATIVE_ABI,
    cudaUnavailable: "this memory is numbers",
    threads: 1,
    holderPath: "",
    cudaLibraryPath: "",
    acquireLock: () => null,
    shareLock: () => {},
    openLock(path) {
      const lock = {} as FileLock;
      lockPaths.set(lock, path);
      return lock;
    },
    tryLock: (lock, kind) => tryLock(disk, found(lockPaths.get(lock)), { owner, kind }),
    unlock: (lock) => unlock(disk, found(lockPaths.get(lock)), owner),
    closeLock: notAskedNow,
    openDevice: () => ({}) as Device,
    describeDevice: () => DEVICE_FACTS,
    pinSources: async () => ({ pinnedBytes: 0 }),
    openControl(path) {
      const page = disk.pages.get(path) ?? EMPTY_PAGE;
      disk.pages.set(path, { ...page });
      const control = {} as Control;
      controls.set(control, { path, tornGeneration: page.generation % 2 === 1 ? page.generation : -1 });
      return control;
    },
    readControl: read,
    beginSwap(control, epoch, reload) {
      const page = pageOf(control);
      isTorn = page.generation % 2 === 1;
      if (!isTorn) page.generation += 1;
      found(controls.get(control)).tornGeneration = -1;
      Object.assign(page, { state: "swapping", epoch, reload });
    },
    endSwap(control, update) {
      const page = pageOf(control);
      Object.assign(page, update, { state: "live", generation: page.generation + 1 });
    },
    closeControl: () => {},
    openArena({ path, mode, headerBytes, dataBytes }) {
      const size = Math.ceil(dataBytes / BYTES_A_NUMBER);
      if (mode === "create") {
        disk.arenas.set(path, new Uint32Array(size));
        disk.headers.set(path, headerBytes);
      }
      const live = disk.arenas.get(path);
      if (live?.length !== size) throw nativeError("NATIVE_IO", {});
      const arena = {} as Arena;
      arenas.set(arena, { path, live, staging: null });
      return arena;
    },
    closeArena: (arena) => void arenas.delete(arena),
    openStaging(arena) {
      const memory = arenaOf(arena);
      memory.staging ??= new Uint32Array(memory.live.length);
      memory.staging.fill(POISON);
      disk.staging = memory.staging;
    },
    closeStaging(arena) {
      arenaOf(arena).staging = null;
    },
    createCancel: () => ({}) as Cancel,
    cancel: (cancel) => void cancelled.add(cancel),
    async runLayer(arena, half, program, cancel) {
      const sum = await write(arenaOf(arena), half, program, cancel);
      const times = { readMs: 0, placeMs: 0, quantizeMs: 0, writeMs: 0 };
      return { bytesRead: 1, bytesWritten: 1, ...times, digest: sum.toString(16).padStart(16, "0") };
    },
    async exchange(arena, spans) {
      const { path, live, staging } = arenaOf(arena);
      const other = found(staging);
      for (const { first, count } of spans.map(numbersOf)) {
        await piece();
        heedWrite(path);
        const before = live.slice(first, first + count);
        live.set(other.subarray(first, first + count), first);
        other.set(before, first);
      }
      return { bytes: 0, swapMs: 1 };
    },
    digest: notAsked,
    exportLive: notAsked,
    openBuffers: notAskedNow,
    fillBuffers: notAsked,
    describeBuffers: notAskedNow,
    freeBuffers: notAsked,
    closeBuffers: notAskedNow,
  };
}

function notAskedNow(): never {
  throw new Error("no schedule asks for it");
}

const notAsked = () => Promise.reject(new Error("no schedule asks for it"));

export function filesOf(disk: Disk): Files {
  return {
    exists: (path) => disk.arenas.has(path),
    readHead: (path, bytes) => found(disk.headers.get(path)).subarray(0, bytes),
    makeDirectory: () => {},
    rename(from, to) {
      for (const files of [disk.arenas, disk.headers] as Map<string, unknown>[]) {
        files.set(to, found(files.get(from)));
        files.delete(from);
      }
    },
    remove(path) {
      disk.arenas.delete(path);
      disk.headers.delete(path);
    },
  };
}

const DEVICE_FACTS: DeviceFacts = {
  kind: "cpu",
  name: "numbers",
  uuid: "",
  totalBytes: 0,
  freeBytes: 0,
  pinnedBytes: 0,
};

const EMPTY_PAGE: ControlPage = {
  abiVersion: 1,
  state: "empty",
  generation: 0,
  epoch: 0,
  arenaId: "",
  layoutDigest: "",
  reload: "",
  content: "",
  weightVersion: "",
  digest: "0",
  deviceKind: "cpu",
  deviceUuid: "",
  ipcHandle: "",
  dataOffset: 0,
  dataBytes: 0,
};

function numbersOf({ offset, bytes }: Span): { first: number; count: number } {
  return { first: offset / BYTES_A_NUMBER, count: Math.ceil(bytes / BYTES_A_NUMBER) };
}

/** A tensor at a time. The checkpoint is the number that the file is called. */
function* pieces({
  files,
  ops,
  slices,
}: LayerProgram): Generator<{ first: number; count: number; checkpoint: number }> {
  const op = (row: number, field: (typeof OP_FIELDS)[number]) =>
    ops[row * OP_FIELDS.length + OP_FIELDS.indexOf(field)] ?? 0;
  const fileOf = (slice: number) => slices[slice * SLICE_FIELDS.length + SLICE_FIELDS.indexOf("file")] ?? 0;
  for (let row = 0; row < ops.length / OP_FIELDS.length; row++) {
    const bytes = op(row, "rows") * op(row, "cols") * 4;
    const { first, count } = numbersOf({ offset: op(row, "outOffset"), bytes });
    const checkpoint = Number(files[fileOf(op(row, "firstSlice"))]?.path);
    yield { first, count, checkpoint };
  }
}

function nativeError(code: string, details: Record<string, number>): Error {
  return Object.assign(new Error(code), { code, details });
}

function found<Value>(value: Value | null | undefined): Value {
  if (value === null || value === undefined) throw new Error("the schedule's memory has no such thing");
  return value;
}
