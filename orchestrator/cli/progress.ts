// A reload's events -> what a watcher sees: one bar a rank on a terminal, one line a change elsewhere. Pure; follow.ts draws.

import type { RankProgress, ReloadEvents, ReloadStateName, ReloadView } from "../contract/reload.js";
import { bucketsSentence, formatBytes, formatMs, rankName, replicaCount } from "./format.js";

export interface Progress {
  /** The record as it was last read, which may be ahead of the events. */
  reload: ReloadView;
  /** Of the last event. */
  state: ReloadStateName;
  /** By "replica/rank". */
  ranks: Map<string, RankProgress>;
  /** Retries and warnings, newest last. */
  notes: string[];
}

export function startProgress(reload: ReloadView): Progress {
  const ranks = new Map(reload.ranks.map((rank) => [keyOf(rank), rank]));
  return { reload, state: reload.state, ranks, notes: reload.warnings.map((one) => `${one.code}: ${one.message}`) };
}

/** The record was read again; what the events tell stays theirs, or the story would run backwards while they are replayed. */
export function withReload(progress: Progress, reload: ReloadView): Progress {
  return { ...progress, reload };
}

/** The record of a reload that has ended tells all. */
export function atEnd(progress: Progress, reload: ReloadView): Progress {
  return { ...startProgress(reload), notes: progress.notes };
}

export function withEvent(progress: Progress, name: string, payload: unknown): Progress {
  switch (name) {
    case "state":
      return { ...progress, state: (payload as ReloadEvents["state"]).state };
    case "progress": {
      const rank = payload as ReloadEvents["progress"];
      return { ...progress, ranks: new Map(progress.ranks).set(keyOf(rank), rank) };
    }
    case "retry": {
      const { error, layer, attempt, ...rank } = payload as ReloadEvents["retry"];
      const where = `${nameIn(progress, rank)}, ${layer}`;
      return {
        ...progress,
        notes: [...progress.notes, `try ${attempt} of ${where} failed: ${error.code}: ${error.message}`],
      };
    }
    case "warning": {
      const { code, message } = payload as ReloadEvents["warning"];
      return { ...progress, notes: [...progress.notes, `${code}: ${message}`] };
    }
    case "bucket": {
      const { bucket, state } = payload as ReloadEvents["bucket"];
      if (state !== "wanted") return progress;
      return { ...progress, notes: [...progress.notes, `bucket ${bucket} is wanted again`] };
    }
    default:
      return progress; // an event that a newer orchestrator sends
  }
}

const keyOf = (rank: { replica: number; rank: number }) => `${rank.replica}/${rank.rank}`;

function nameIn(progress: Progress, rank: { replica: number; rank: number }): string {
  return rankName(rank, replicaCount([rank, ...progress.ranks.values()]));
}

const MAX_BAR_COLUMNS = 40;
const SHOWN_NOTES = 3;

/** Lines besides the bars: title, reason, the count of ranks left out, notes, and the line that the cursor stands on. */
const OTHER_ROWS = 4 + SHOWN_NOTES;

/** What stands on the terminal now: a title, a bar a rank, the last notes; it fits into `columns` and `rows`. */
export function progressLines(progress: Progress, elapsedMs: number, columns: number, rows: number): string[] {
  const { reload } = progress;
  const ranks = [...progress.ranks.values()].sort((a, b) => a.replica - b.replica || a.rank - b.rank);
  const replicas = replicaCount(ranks);
  const title = `${reload.kind} of ${reload.fleet} to ${reload.weight_version}  ${progress.state}  ${formatMs(elapsedMs)}`;
  const reason = reasonOf(progress);
  const waits = reason === null ? [] : [`  waits: ${reason}`];
  const buckets = reload.push === null ? [] : [`  ${bucketsSentence(reload.push)}`];
  const shown = ranks.slice(0, Math.max(1, rows - OTHER_ROWS - buckets.length));
  const bars = shown.map((rank) => rankLine(rank, layersOf(reload, ranks.length), rankName(rank, replicas), columns));
  const notes = progress.notes.slice(-SHOWN_NOTES).map((note) => `  ${note}`);
  const more = shown.length < ranks.length ? [`  and ${ranks.length - shown.length} ranks more`] : [];
  return [title, ...waits, ...buckets, ...bars, ...more, ...notes].map((line) => cut(line, columns));
}

function rankLine(rank: RankProgress, layers: number, name: string, columns: number): string {
  const done = Math.min(rank.layers_done, layers);
  const count = `${String(done).padStart(String(layers).length)}/${layers}`;
  const tail = `${count}  ${rank.state.padEnd(10)} ${formatBytes(rank.bytes_read)} read${buffersWords(rank)}`;
  const width = Math.max(5, Math.min(MAX_BAR_COLUMNS, columns - name.length - tail.length - 6));
  // A rollback that takes an intact undo back is prepared without loading a layer.
  const ready = rank.state === "prepared" || rank.state === "swapped";
  return `  ${name}  ${bar(ready ? 1 : done / Math.max(1, layers), width)}  ${tail}`;
}

/** What a rank of a push holds of modules that are not complete. */
function buffersWords({ push }: RankProgress): string {
  if (push === null) return "";
  const { host_bytes, device_bytes, peak_host_bytes, peak_device_bytes } = push.buffers;
  return `, ${formatBytes(host_bytes + device_bytes)} buffered (most ${formatBytes(peak_host_bytes + peak_device_bytes)})`;
}

export function bar(fraction: number, width: number): string {
  const full = Math.floor(fraction * width);
  return "█".repeat(full) + "░".repeat(width - full);
}

/** What the record waits for, while it speaks of the state that is shown. */
function reasonOf({ reload, state }: Progress): string | null {
  return reload.state === state ? reload.pending_reason : null;
}

/** Layers of one rank: the plan's, as soon as there is a plan. */
function layersOf(reload: ReloadView, ranks: number): number {
  if (reload.layers.length > 0) return reload.layers.length;
  return ranks === 0 ? 0 : Math.round(reload.progress.layers_total / ranks);
}

const cut = (line: string, columns: number) =>
  line.length > columns ? `${line.slice(0, Math.max(0, columns - 1))}…` : line;

/** What changed from one to the next, as lines for a log. */
export function changeLines(before: Progress, after: Progress): string[] {
  const lines: string[] = [];
  const reason = reasonOf(after);
  if (after.state !== before.state) lines.push(`${after.reload.reload_id} ${after.state}`);
  // Elsewhere the ranks' lines say how it goes on; in the queue nothing else does.
  if (after.state === "queued" && reason !== null && reason !== reasonOf(before)) {
    lines.push(`${after.reload.reload_id} waits: ${reason}`);
  }
  if (after.reload.push?.finished === true && before.reload.push?.finished === false) {
    lines.push(`${after.reload.reload_id} all sent: ${bucketsSentence(after.reload.push)}`);
  }
  for (const [key, rank] of after.ranks) {
    if (before.ranks.get(key)?.state === rank.state) continue;
    lines.push(`${after.reload.reload_id} ${nameIn(after, rank)} ${rank.state}, ${rank.layers_done} layers done`);
  }
  return [...lines, ...after.notes.slice(before.notes.length).map((note) => `${after.reload.reload_id} ${note}`)];
}
