// Exports as orchestrator and worker speak of them. The bytes of an export lie on the rank's host; they reach an orchestrator in parts,
// as messages over Redis's pub/sub: never stored, and asked for one by one, so that no more than a few are under way.

import { KEY_PREFIX, type RankKey } from "./jobs.js";

/** An export is removed this long after it was made or last read. */
export const EXPORT_KEPT_MS = 3_600_000;
/** Bytes of one part. With those in flight far less than what Redis lets a subscriber fall behind (8 MiB). */
export const PART_BYTES = 512 * 1024;

/** Which replica and rank made it, then 128 random bits: no two exports are ever called the same. */
const EXPORT_ID = /^(\d{1,7})-(\d{1,7})-[0-9a-f]{32}$/;

/** The rank that has the export; null: it is no id of an export. */
export function rankOfExport(id: string): RankKey | null {
  const [, replica, rank] = EXPORT_ID.exec(id) ?? [];
  return replica === undefined || rank === undefined ? null : `${Number(replica)}/${Number(rank)}`;
}

export function exportId(rank: RankKey, random: string): string {
  return `${rank.replace("/", "-")}-${random}`;
}

export function exportFile(id: string): string {
  return `${id}.safetensors`;
}

export const EXPORT_CHANNELS = {
  /** Where a rank is asked for parts. */
  asked: (fleet: string, rank: RankKey) => `${KEY_PREFIX}:export-parts:${fleet}:${rank}`,
  /** Where an orchestrator gets them. */
  answered: (orchestrator: string) => `${KEY_PREFIX}:export-answers:${orchestrator}`,
} as const;

export interface PartRequest {
  /** The name by which the orchestrator is answered. */
  orchestrator: string;
  number: number;
  id: string;
  /** `read` of 0 bytes: only the size. */
  kind: "read" | "remove";
  offset: number;
  bytes: number;
}

export interface PartAnswer {
  number: number;
  result: "ok" | "gone" | "failed";
  /** Of the whole export. */
  sizeBytes: number;
  /** Why it failed. */
  message: string;
  content: Buffer;
}

/** Null for anything that is no request. */
export function parsePartRequest(text: string): PartRequest | null {
  try {
    const { orchestrator, number, id, kind, offset, bytes } = JSON.parse(text) as Record<string, unknown>;
    if (typeof orchestrator !== "string" || typeof id !== "string" || rankOfExport(id) === null) return null;
    if (kind !== "read" && kind !== "remove") return null;
    if (!isCount(number) || !isCount(offset) || !isCount(bytes) || bytes > PART_BYTES) return null;
    return { orchestrator, number, id, kind, offset, bytes };
  } catch {
    return null;
  }
}

/** A line of JSON, then the part's bytes. */
export function encodePartAnswer({ content, ...head }: PartAnswer): Buffer {
  return Buffer.concat([Buffer.from(`${JSON.stringify(head)}\n`), content]);
}

/** Null for anything that is no answer. */
export function decodePartAnswer(message: Buffer): PartAnswer | null {
  const end = message.indexOf("\n");
  try {
    const head = JSON.parse(message.subarray(0, end).toString()) as Record<string, unknown>;
    const { number, result, sizeBytes, message: reason } = head;
    if (!isCount(number) || !isCount(sizeBytes) || typeof reason !== "string") return null;
    if (result !== "ok" && result !== "gone" && result !== "failed") return null;
    return { number, result, sizeBytes, message: reason, content: message.subarray(end + 1) };
  } catch {
    return null;
  }
}

function isCount(value: unknown): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
}
