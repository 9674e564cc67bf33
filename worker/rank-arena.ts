// A rank's standing memory: the control page, the live file behind it, and, while a reload needs another layout, the arena
// that will take its place. Decides nothing about who may write; see staging.ts.

import { randomBytes } from "node:crypto";
import { closeSync, existsSync, mkdirSync, openSync, readSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { Arena, Control, ControlPage, Device, DeviceFacts, Half, NativeCore } from "../native/native.js";
import { countOf } from "../orchestrator/contract/count-of.js";
import type { ArenaLayout, Layout } from "../orchestrator/contract/plan.js";
import type { StagingPlace } from "../orchestrator/fleet/plan-store.js";
import type { Held, LiveArena } from "../orchestrator/fleet/state.js";
import { layoutArena } from "../orchestrator/program/arena-layout.js";
import { layoutOfHeader, MAX_ARENA_HEADER_BYTES } from "./arena-header.js";
import type { HeldMemory, Holders } from "./holder.js";

export interface StandingArena {
  arena: Arena;
  /** 32 hex digits; a consumer that sees another one must attach again. */
  id: string;
  layoutDigest: string;
  layout: ArenaLayout;
  /** Whether a plan has shown that the digest's layout is this one. */
  isPlanned: boolean;
  /** Of the live half; null where that is a file. */
  memory: HeldMemory | null;
}

/** Where a reload's bytes are written before its swap. */
export interface Destination {
  target: StandingArena;
  half: Half;
  /** `staging`: exchanged at the swap. `live`: written in place. `next`: an arena that is not live yet takes over. */
  mode: "staging" | "live" | "next";
}

export interface RankArena {
  readonly livePath: string;
  readonly controlPath: string;
  readonly exportDirectory: string;
  page(): ControlPage;
  /** As the fleet is told. */
  liveState(): LiveArena;
  standing(): StandingArena | null;
  beginSwap(epoch: number, reload: string): void;
  endSwap(standing: StandingArena, held: Held, digest: string): void;
  /** Makes ready a place for bytes of this layout. */
  makeDestination(
    layout: Layout,
    layoutDigest: string,
    mode: "staged" | "in_place",
    place: StagingPlace,
  ): Promise<Destination>;
  /** `next` becomes the standing arena, under the live file's name. */
  takeOver(next: StandingArena): void;
  close(): void;
}

export interface RankArenaOptions {
  core: NativeCore;
  /** Which rank of its replica: where experts do not divide evenly, ranks have arenas of different sizes. */
  rank: number;
  directory: string;
  device: Device;
  /** Who holds device memory for it; null: live halves are files. */
  holders: Holders | null;
  /** Fills staging with a pattern before each use, so that a byte left unwritten shows. */
  poison: boolean;
  files: Files;
  /** The host may have lost bytes of the live file that its control page counts on: they are compared with the page's digest. */
  bytesMayBeLost: boolean;
  /** Why there is a live file and it is not taken up. */
  onDistrust(reason: string): void;
}

/** What is done to files beside the core's own work on them. */
export interface Files {
  exists(path: string): boolean;
  /** The first `bytes` of a file, or fewer where it ends before. */
  readHead(path: string, bytes: number): Uint8Array;
  makeDirectory(path: string): void;
  rename(from: string, to: string): void;
  remove(path: string): void;
}

export const HOST_FILES: Files = {
  exists: existsSync,
  readHead,
  makeDirectory: (path) => void mkdirSync(path, { recursive: true }),
  rename: renameSync,
  remove: (path) => rmSync(path, { force: true }),
};

function readHead(path: string, bytes: number): Uint8Array {
  const descriptor = openSync(path, "r");
  try {
    const head = new Uint8Array(bytes);
    return head.subarray(0, readSync(descriptor, head, 0, bytes, 0));
  } finally {
    closeSync(descriptor);
  }
}

/** Beside staging: what a load needs of the device for a moment. */
const SCRATCH_BYTES = 512 * 2 ** 20;

export async function openRankArena(options: RankArenaOptions): Promise<RankArena> {
  const { core, rank, directory, device, holders, poison, files } = options;
  // A header alone is no safetensors file, and its name says so.
  const ending = holders === null ? "safetensors" : "safetensors.header";
  const livePath = join(directory, `live.${ending}`);
  const nextPath = join(directory, `next.${ending}`);
  const controlPath = join(directory, "control");
  const exportDirectory = join(directory, "exports");
  const facts = core.describeDevice(device);
  files.makeDirectory(exportDirectory);
  files.remove(nextPath);
  holders?.find(nextPath)?.release();
  const control = core.openControl(controlPath);
  let standing = await attachStanding(options, control, livePath);
  let next: StandingArena | null = null;
  let stagingAt: "device" | "host" | null = null;

  function close({ arena, memory }: StandingArena): void {
    core.closeArena(arena);
    memory?.release();
  }

  /** What staging holds is of the old layout: its room is the new arena's. */
  function closeStaging(): void {
    if (standing !== null) core.closeStaging(standing.arena);
    stagingAt = null;
  }

  async function createNext(layout: Layout, layoutDigest: string): Promise<StandingArena> {
    if (next !== null) close(next);
    next = null;
    closeStaging();
    const planned = layoutArena(layout, rank);
    const { headerBytes, dataBytes } = planned;
    const memory = holders === null ? null : await holders.hold(nextPath, dataBytes);
    const ipcHandle = memory?.ipcHandle ?? "";
    try {
      const arena = core.openArena({ path: nextPath, mode: "create", headerBytes, dataBytes, device, ipcHandle });
      const id = randomBytes(16).toString("hex");
      next = { arena, id, layoutDigest, layout: planned, isPlanned: true, memory };
      return next;
    } catch (error) {
      memory?.release();
      throw error;
    }
  }

  /** An arena that was taken up says by its header what it holds; that this is the layout of that digest shows here. */
  function hasLayout(held: StandingArena, layout: Layout, layoutDigest: string): boolean {
    if (held.layoutDigest !== layoutDigest) return false;
    held.isPlanned ||= Buffer.compare(layoutArena(layout, rank).headerBytes, held.layout.headerBytes) === 0;
    return held.isPlanned;
  }

  function openStaging({ arena, layout }: StandingArena, place: StagingPlace): void {
    const at = place === "auto" ? (stagingAt ?? roomiest(core.describeDevice(device), layout.dataBytes)) : place;
    stagingAt = null;
    core.openStaging(arena, at, poison);
    stagingAt = at;
  }

  return {
    livePath,
    controlPath,
    exportDirectory,
    page: () => core.readControl(control),
    liveState: () => liveStateOf(core.readControl(control), standing !== null),
    standing: () => standing,
    beginSwap: (epoch, reload) => core.beginSwap(control, epoch, reload),
    endSwap({ id, layout, memory }, held, digest) {
      core.endSwap(control, {
        ...held,
        arenaId: id,
        digest,
        deviceKind: facts.kind,
        deviceUuid: facts.uuid,
        ipcHandle: memory?.ipcHandle ?? NO_HANDLE,
        dataOffset: layout.headerBytes.byteLength,
        dataBytes: layout.dataBytes,
      });
    },
    async makeDestination(layout, layoutDigest, mode, place) {
      if (standing === null || !hasLayout(standing, layout, layoutDigest)) {
        return { target: await createNext(layout, layoutDigest), half: "live", mode: "next" };
      }
      const { state } = core.readControl(control);
      if (mode === "in_place" || state !== "live") return { target: standing, half: "live", mode: "live" };
      openStaging(standing, place);
      return { target: standing, half: "staging", mode: "staging" };
    },
    takeOver(taking) {
      if (standing !== null) close(standing);
      files.rename(nextPath, livePath);
      holders?.rename(nextPath, livePath);
      standing = taking;
      next = null;
    },
    close() {
      if (next !== null) close(next);
      if (standing !== null) core.closeArena(standing.arena); // its holder waits for this worker's successor
      core.closeControl(control);
    },
  };
}

const NO_HANDLE = "0".repeat(128);

function roomiest({ kind, freeBytes }: DeviceFacts, bytes: number): "device" | "host" {
  return kind === "cpu" || freeBytes >= bytes + SCRATCH_BYTES ? "device" : "host";
}

/** The live file that an earlier process of this rank left, if it is what the control page says; else none. */
async function attachStanding(
  options: RankArenaOptions,
  control: Control,
  path: string,
): Promise<StandingArena | null> {
  const { core, holders, files, onDistrust } = options;
  const page = core.readControl(control);
  if (page.state === "empty" || !files.exists(path)) return null;
  const memory = holders?.find(path) ?? null;
  try {
    if (holders !== null && memory?.ipcHandle !== page.ipcHandle)
      throw new Error("nobody holds its device memory any more");
    const standing = attach(options, page, path, memory);
    if (options.bytesMayBeLost) await requireBytes(core, standing, page);
    return standing;
  } catch (error) {
    memory?.release();
    onDistrust(
      `the arena that ${path} holds is not taken up: ${error instanceof Error ? error.message : String(error)}`,
    );
    return null; // the next load makes another
  }
}

function attach(
  { core, device, files }: RankArenaOptions,
  page: ControlPage,
  path: string,
  memory: HeldMemory | null,
): StandingArena {
  if (page.dataOffset > MAX_ARENA_HEADER_BYTES)
    throw new Error(`its control page says ${countOf(page.dataOffset, "byte")} of header`);
  const layout = layoutOfHeader(files.readHead(path, page.dataOffset), page, path);
  const { headerBytes, dataBytes } = layout;
  const ipcHandle = memory?.ipcHandle ?? "";
  const arena = core.openArena({ path, mode: "attach", headerBytes, dataBytes, device, ipcHandle });
  return { arena, id: page.arenaId, layoutDigest: page.layoutDigest, layout, isPlanned: false, memory };
}

/** Closes the arena again where its live bytes are not those that the page's digest is of. A torn page has no digest to go by. */
async function requireBytes(core: NativeCore, { arena, layout }: StandingArena, page: ControlPage): Promise<void> {
  if (page.state !== "live") return;
  const spans = layout.tensors.filter(({ bytes }) => bytes > 0).map(({ offset, bytes }) => ({ offset, bytes }));
  const digest = await core.digest(arena, "live", spans, core.createCancel());
  if (digest === page.digest) return;
  core.closeArena(arena);
  throw new Error(`its bytes have the digest ${digest}, its control page says ${page.digest}`);
}

function liveStateOf(page: ControlPage, attached: boolean): LiveArena {
  const { generation, reload, content, weightVersion, epoch, layoutDigest } = page;
  if (!attached || page.state === "empty") return { state: "empty", generation, held: null };
  const held = { reload, content, weightVersion, epoch, layoutDigest };
  // A torn arena still says what it was being swapped to, but nothing vouches for its bytes.
  return { state: page.state, generation, held: page.state === "live" ? held : null };
}
