// The bridge to the native core: the same names in the same order as src/addon.cc. Nothing here thinks: the caller has
// validated, the core rechecks only what would corrupt memory. Absent is null, never undefined. Every promise is settled by
// work on the core's own threads; none of it runs on the JS thread or in the libuv pool.

import { createRequire } from "node:module";
import { buildCommand, findCore, missingCoreWords, rootOf } from "./core-file.js";

/** Bumped with any change of what crosses the bridge; native/src/addon.cc has the same number. */
export const NATIVE_ABI = 7;

/** One kernel tensor of a program; a row of LayerProgram.ops, each field a number, in this order. */
export const OP_FIELDS = [
  "scheme", // SCHEMES[..].code
  "outDtype", // DTYPES[..].code of the codes or values
  "roundDtype", // DTYPES[..].code that 16/32-bit values are rounded to first, -1: none
  "rows", // of the rank's matrix
  "cols",
  "outOffset", // bytes from the start of the arena's tensor bytes
  "scaleOffset", // the same for the F32 scales, -1: none
  "firstSlice", // index into slices
  "sliceCount",
  "zeroRows", // this many rows have no slice and are zero
  "zeroCols", // this many last columns no slice fills; zero too
  "constant", // the value of a scalar without slices, NaN: none
  "mustBePositive", // 1: a value that is zero or negative is an error
] as const;

/** One contiguous or strided range of a checkpoint file; a row of LayerProgram.slices. */
export const SLICE_FIELDS = [
  "file", // index into files
  "offset", // of the first element, bytes from the start of the file
  "rowStride", // bytes from a row's first element to the next row's
  "rows",
  "cols",
  "dtype", // DTYPES[..].code, one of BF16, F16, F32, F8_E4M3, or F8_E8M0, which counts as the F32 that it becomes
  "toRow", // first row of the op's matrix that it fills
  "colStride", // bytes from an element to the next of its row; an element's own, unless the matrix is transposed on disk
  "scale", // index into scales of FP8 codes that are to be made values, -1: none
] as const;

/** The scales of a slice's FP8 codes: a matrix of a checkpoint file with an element for each block; a row of LayerProgram.scales. */
export const SCALE_FIELDS = [
  "file", // index into files
  "offset", // of the first scale, bytes from the start of the file
  "rowStride", // bytes from a row's first scale to the next row's
  "dtype", // DTYPES[..].code, one of BF16, F16, F32, F8_E8M0
  "blockRows", // codes that share a scale
  "blockCols",
  "firstRow", // where the slice begins in the matrix of codes
  "firstCol",
] as const;

/** Two slices of one element whose values must be equal; a row of LayerProgram.agreements. */
export const AGREEMENT_FIELDS = ["slice", "with"] as const;

/**
 * A part of each head of a matrix that is finished, dequantized: [heads, rows, cols], or [heads, cols, rows]; a row of
 * LayerProgram.derived. Made after the ops, in the same half.
 */
export const DERIVED_FIELDS = [
  "scheme", // SCHEMES[..].code of the matrix that it is made from
  "weightOffset", // where that lies, bytes from the start of the arena's tensor bytes
  "weightDtype", // DTYPES[..].code
  "scaleOffset", // of its F32 scales, -1: none
  "outOffset",
  "outDtype", // DTYPES[..].code that values are rounded to
  "heads",
  "headRows", // rows of the matrix that a head has
  "firstRow", // of a head's rows, the first that is taken
  "rows",
  "cols",
  "transposed", // 1: each head is written transposed
] as const;

/** Rows of a file that are packed into buffers; a row of the table that fillBuffers takes. */
export const COPY_FIELDS = [
  "file", // index into files
  "offset", // of the first row's first byte, from the start of the file
  "rowStride", // bytes from a row's first byte to the next row's
  "rows",
  "rowBytes",
  "toOffset", // of the first row in the buffers; the others follow without a gap
] as const;

export interface ProgramFile {
  path: string;
  sizeBytes: number;
  mtimeNs: string;
  inode: string;
}

/** A layer's plan resolved to numbers: no name, no shape rule, nothing to look up. */
export interface LayerProgram {
  files: ProgramFile[];
  ops: Float64Array; // ops × OP_FIELDS.length
  slices: Float64Array; // slices × SLICE_FIELDS.length
  scales: Float64Array; // matrices × SCALE_FIELDS.length
  agreements: Float64Array; // pairs × AGREEMENT_FIELDS.length
  derived: Float64Array; // tensors × DERIVED_FIELDS.length
  allowNonFinite: boolean;
}

/** A range of the arena's tensor bytes. */
export interface Span {
  offset: number;
  bytes: number;
}

export interface LayerReport {
  bytesRead: number;
  bytesWritten: number;
  /** Thread time summed over the core's threads. */
  readMs: number;
  placeMs: number;
  quantizeMs: number;
  writeMs: number;
  /** Sum modulo 2^64 over the 256-byte blocks written, 16 hex digits: independent of order and threads. */
  digest: string;
}

export interface SwapReport {
  bytes: number;
  swapMs: number;
}

export interface ExportReport {
  bytes: number;
}

export interface FillReport {
  bytesRead: number;
  /** Thread time summed over the core's threads. */
  readMs: number;
}

/** What buffers are for a program that reads from them, and the memory that they hold, measured. */
export interface BuffersFacts {
  /** As it is until the next fill or free. */
  file: ProgramFile;
  heldBytes: number;
}

export interface PinReport {
  pinnedBytes: number;
}

/** The control page's fields (docs/arena-format.md). Text is UTF-8, cut at the field's size. */
export interface ControlPage {
  abiVersion: number;
  state: "empty" | "live" | "swapping" | "torn";
  /** Odd while swapping. */
  generation: number;
  epoch: number;
  arenaId: string; // 32 hex digits
  layoutDigest: string; // 64 hex digits
  reload: string; // the reload that swapped last (64 bytes)
  content: string; // the reload whose bytes these are: itself, or a rollback's target (64 bytes)
  weightVersion: string; // 128 bytes
  digest: string; // 16 hex digits: of the live bytes, as LayerReport.digest summed
  deviceKind: "cpu" | "cuda";
  deviceUuid: string; // 32 hex digits, zeros on the CPU
  ipcHandle: string; // 128 hex digits, zeros on the CPU
  dataOffset: number; // of the tensor bytes in the live file
  dataBytes: number;
}

/** What endSwap records; the rest of the page stays. */
export type ControlUpdate = Omit<ControlPage, "abiVersion" | "state" | "generation">;

export interface DeviceFacts {
  kind: "cpu" | "cuda";
  name: string;
  uuid: string; // 32 hex digits, zeros on the CPU
  totalBytes: number;
  /** Of the device's memory, as it is now; other processes use it too. */
  freeBytes: number;
  /** Host memory that this process has pinned for the device. */
  pinnedBytes: number;
}

declare const brand: unique symbol;
export interface FileLock {
  readonly [brand]: "FileLock";
}
export interface Control {
  readonly [brand]: "Control";
}
export interface Device {
  readonly [brand]: "Device";
}
export interface Arena {
  readonly [brand]: "Arena";
}
export interface Buffers {
  readonly [brand]: "Buffers";
}
export interface Cancel {
  readonly [brand]: "Cancel";
}
export type Half = "live" | "staging";

/** Memory of the device, or pinned memory of the host that the device can reach; on the CPU they are the same. */
export type Where = "device" | "host";

export interface ArenaOptions {
  device: Device;
  /** The live file: created whole (disk space reserved, header written) or attached to as it stands. On CUDA it is the
   * header alone. */
  path: string;
  mode: "create" | "attach";
  headerBytes: Uint8Array;
  dataBytes: number;
  /** On CUDA the memory that is the live half, as its holder printed it: 128 hex digits. On the CPU empty. */
  ipcHandle: string;
}

export interface NativeCore {
  readonly abi: number;
  /** Why a GPU is not available, or null when it is. Looked up at the first read, without using a device. */
  readonly cudaUnavailable: string | null;
  readonly threads: number;
  /** The program that holds the live half's memory on a GPU: `layercast-holder`, see src/holder.cc. */
  readonly holderPath: string;
  /** The shared object that the GPU is reached by, there or not; the holder's --library. */
  readonly cudaLibraryPath: string;

  /**
   * Takes an exclusive lock on the file for the life of the process, and writes `holder` into it. Null: taken; otherwise
   * what the file says of the process that has it, empty while that one has not written yet.
   */
  acquireLock(path: string, holder: string): string | null;
  /** Takes a shared lock on the file for the life of the process; waits so long for one who has it alone. */
  shareLock(path: string, timeoutMs: number): void;
  /** A lock that is taken and given back again and again; the process's end gives it back too. Makes the file. */
  openLock(path: string): FileLock;
  /** Never waits: false where another has it so that this one cannot. What this handle had before is then given back. */
  tryLock(lock: FileLock, kind: "shared" | "exclusive"): boolean;
  unlock(lock: FileLock): void;
  closeLock(lock: FileLock): void; // gives it back

  openDevice(name: string): Device; // "cpu", "cuda:0"; open while the handle or an arena on it is there
  describeDevice(device: Device): DeviceFacts;
  /** The device reads these files by itself from now on, as many as the limit allows, and no others. */
  pinSources(device: Device, files: ProgramFile[], limitBytes: number): Promise<PinReport>;

  openControl(path: string): Control; // maps it; makes an empty page where there is none or a wrong magic
  readControl(control: Control): ControlPage;
  beginSwap(control: Control, epoch: number, reload: string): void; // generation odd, state swapping
  endSwap(control: Control, update: ControlUpdate): void; // all fields, then generation even, state live
  closeControl(control: Control): void;

  openArena(options: ArenaOptions): Arena;
  closeArena(arena: Arena): void; // refuses while work is in flight
  openStaging(arena: Arena, where: Where, poison: boolean): void; // allocates once; poison fills it with 0xA5
  closeStaging(arena: Arena): void; // gives the memory back

  /**
   * A range of this many bytes of the host's memory, of which only what has been filled is held: whole pages of it. Programs
   * read from it like from a file.
   */
  openBuffers(bytes: number): Buffers;
  /** Packs rows of files into it, on all threads. `copies`: rows of COPY_FIELDS that do not overlap in it. */
  fillBuffers(buffers: Buffers, files: ProgramFile[], copies: Float64Array, cancel: Cancel): Promise<FillReport>;
  describeBuffers(buffers: Buffers): BuffersFacts;
  /** Gives the memory of whole pages within these ranges back; they can be filled again. */
  freeBuffers(buffers: Buffers, spans: Span[]): Promise<void>;
  closeBuffers(buffers: Buffers): void; // gives all memory back once no work in flight needs it

  createCancel(): Cancel;
  cancel(cancel: Cancel): void; // work that carries it ends soon, rejected with NATIVE_CANCELLED

  runLayer(arena: Arena, half: Half, program: LayerProgram, cancel: Cancel): Promise<LayerReport>;
  exchange(arena: Arena, spans: Span[], cancel: Cancel): Promise<SwapReport>; // live <-> staging; cancel is ignored once begun
  digest(arena: Arena, half: Half, spans: Span[], cancel: Cancel): Promise<string>; // as LayerReport.digest
  exportLive(arena: Arena, path: string, headerBytes: Uint8Array, spans: Span[], cancel: Cancel): Promise<ExportReport>;
}

/** Codes of the errors that the core throws, as `error.code`; facts in `error.details` (numbers: slice, row, col, file). */
export const NATIVE_ERRORS = [
  "NATIVE_INVALID_ARGUMENT", // a bad program or handle: a bug above
  "NATIVE_SOURCE_CHANGED", // details.file: size, mtime or inode is not the plan's, or a read came up short
  "NATIVE_SOURCE_NOT_FOUND", // details.file
  "NATIVE_IO", // details.errno
  "NATIVE_NON_FINITE", // details.slice, details.row, details.col (of the slice), the first in slice and row order
  "NATIVE_NOT_POSITIVE", // details.slice
  "NATIVE_OUT_OF_MEMORY", // memory or disk space; details.bytes, and details.freeBytes where it was a half's
  "NATIVE_CANCELLED",
  "NATIVE_NO_DEVICE", // details.ordinal: not there, or lost for this process
  "NATIVE_SCALES_DIFFER", // details.slice, details.with: of an agreement
] as const;
export type NativeErrorCode = (typeof NATIVE_ERRORS)[number];

export interface NativeError extends Error {
  code: NativeErrorCode;
  details: Record<string, number>;
}

export function isNativeError(error: unknown): error is NativeError {
  return error instanceof Error && (NATIVE_ERRORS as readonly unknown[]).includes((error as { code?: unknown }).code);
}

const CORE_UNUSABLE = "NATIVE_CORE_UNUSABLE";

/** Loads the addon; an error that `isCoreUnusable` says in its message what to type. */
export function loadNative(root = rootOf(import.meta.dirname)): NativeCore {
  const path = findCore(root);
  if (path === null) throw unusable(missingCoreWords(root));
  const core = openAddon(path, root);
  if (core.abi === NATIVE_ABI) return core;
  throw unusable(
    `The native core at ${path} has ABI ${core.abi} and this program ${NATIVE_ABI}, so they are of two versions. Build it again with \`${buildCommand(root)}\`.`,
  );
}

function openAddon(path: string, root: string): NativeCore {
  try {
    return createRequire(import.meta.url)(path) as NativeCore;
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw unusable(
      `The native core at ${path} cannot be loaded here (${reason}). Build it again with \`${buildCommand(root)}\`.`,
    );
  }
}

function unusable(message: string): Error {
  return Object.assign(new Error(message), { code: CORE_UNUSABLE });
}

/** Whether the core is missing, of another version or not for this machine: starting again cannot help. */
export function isCoreUnusable(error: unknown): error is Error {
  return error instanceof Error && (error as { code?: unknown }).code === CORE_UNUSABLE;
}
