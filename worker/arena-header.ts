// A live file describes itself: its header names every kernel tensor with its place. So a worker that starts takes up the arena that its
// control page shows without asking Redis, which may have lost all it knew.

import type { ControlPage } from "../native/native.js";
import {
  HEADER_PREFIX_BYTES,
  MAX_HEADER_BYTES,
  parseSafetensorsHeader,
} from "../orchestrator/checkpoint/safetensors-header.js";
import { byteCount, DTYPES, type DType } from "../orchestrator/contract/dtype.js";
import { LayercastError } from "../orchestrator/contract/errors.js";
import type { ArenaLayout, ArenaTensor } from "../orchestrator/contract/plan.js";
import { ARENA_ALIGNMENT, isPad } from "../orchestrator/program/arena-layout.js";

/** The format's own limit, filled up to a page. */
export const MAX_ARENA_HEADER_BYTES = HEADER_PREFIX_BYTES + MAX_HEADER_BYTES + 4096;

/** `headerBytes`: the live file's first `page.dataOffset` bytes. Throws when they are not the header that the page speaks of. */
export function layoutOfHeader(
  headerBytes: Uint8Array,
  page: Pick<ControlPage, "dataOffset" | "dataBytes">,
  path: string,
): ArenaLayout {
  const { dataOffset, dataBytes } = page;
  const header = parseSafetensorsHeader(headerBytes, dataOffset + dataBytes, path);
  if (header.dataOffset !== dataOffset) {
    throw invalid(path, `has its tensors from byte ${header.dataOffset} on, its control page says ${dataOffset}`);
  }
  const tensors = header.tensors
    .filter(({ name }) => !isPad(name))
    .map(({ name, dtype, shape, offset }) => tensorOf(name, dtype, shape, offset - dataOffset, path));
  return { tensors, dataBytes, headerBytes };
}

function tensorOf(name: string, dtype: string, shape: number[], offset: number, path: string): ArenaTensor {
  if (!isKernelDtype(dtype)) throw invalid(path, `has tensor '${name}' of dtype ${dtype}, which no kernel tensor has`);
  if (offset % ARENA_ALIGNMENT !== 0) {
    throw invalid(path, `has tensor '${name}' at byte ${offset}, which is no multiple of ${ARENA_ALIGNMENT}`);
  }
  return { name, dtype, shape, offset, bytes: byteCount(dtype, shape) };
}

function isKernelDtype(dtype: string): dtype is DType {
  return Object.hasOwn(DTYPES, dtype);
}

function invalid(path: string, what: string): LayercastError {
  return new LayercastError("checkpoint_invalid", `${path} ${what}.`, { file: path });
}
