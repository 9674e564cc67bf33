// A reload's events -> what a watcher sees: one bar a rank on a terminal, one line a change elsewhere. Pure; follow.ts draws.

import { countOf } from "../contract/count-of.js";
import {
  type RankProgress,
  type ReloadEvents,
  type ReloadStateName,
  type ReloadView,
  TERMINAL_STATES,
} from "../contract/reload.js";
import { errorWords, inCliWords } from "./cli-words.js";
import { bucketsSentence, formatBytes, formatMs, rankName, waitsWords, warningText } from "./format.js";

export interface Progress {
  /** The record as it was last read, which may be ahead of the events. */
  reload: ReloadView;
  /** Of the last event. */
  state: ReloadStateName;
  /** By "replica/rank". */
  ranks: Map<string, RankProgress>;
  /** Retries and warnings, newest last. */
  notes: string[];
  /** How far the reload's own clock was known to be, in ms since it was submitted; 0 until an event has told. */
  toldMs: number;
}

export function startProgress(reload: ReloadView): Progress {
  const ranks = new Map(reload.ranks.map((rank) => [keyOf(rank), rank]));
  return { reload, state: reload.state, ranks, notes: reload.warnings.map(warningText), toldMs: 0 };
}

/** The record was read again; what the events tell stays theirs, or the story would run backwards while they are replayed. */
export function withReload(progress: Progress, reload: ReloadView): Progress {
  return { ...progress, reload };
}

export function withNote(progress: Progress, note: string): Progress {
  return { ...progress, notes: [...progress.notes, note] };
}

/** The record of a reload that has ended tells all. */
export function atEnd(progress: Progress, reload: ReloadView): Progress {
  return { ...startProgress(reload), notes: progress.notes, toldMs: progress.toldMs };
}

/** An event's id begins with the time at which it was made, by the clock that has noted when the reload was submitted. */
export function withTimeOf(progress: Progress, eventId: string | null): Progress {
  const at = Number.parseInt(eventId ?? "", 10) - Date.parse(progress.reload.created_at);
  return at > progress.toldMs ? { ...progress, toldMs: at } : progress;
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
      const where = `${rankName(rank)}, ${layer}`;
      return {
        ...progress,
        notes: [...progress.notes, `try ${attempt} of ${where} failed: ${errorWords(error)}`],
      };
    }
    case "warning": {
      const { code, message } = payload as ReloadEvents["warning"];
      return { ...progress, notes: [...progress.notes, `${code}: ${inCliWords(message)}`] };
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

const MAX_BAR_COLUMNS = 40;
const SHOWN_NOTES = 3;

/** Lines besides the bars: title, reason, the count of ranks left out, notes, and the line that the cursor stands on. */
const OTHER_ROWS = 4 + SHOWN_NOTES;

/**
 * What stands on the terminal now: a title, a bar a rank, the last notes; it fits into `columns` and `rows`. Of one that has ended the
 * sentence below says how long it took; a second time, by the clock of who watched, would differ.
 */
export function progressLines(progress: Progress, elapsedMs: number, columns: number, rows: number): string[] {
  const { reload } = progress;
  const ranks = [...progress.ranks.values()].sort((a, b) => a.replica - b.replica || a.rank - b.rank);
  const clock = isEnded(progress) ? "" : `  ${formatMs(elapsedMs)}`;
  const title = `${reload.kind} of ${reload.fleet} to ${reload.weight_version}  ${progress.state}${clock}`;
  const reason = reasonOf(progress);
  const waits = reason === null ? [] : [`  ${waitsWords(reason)}`];
  const buckets = reload.push === null ? [] : [`  ${bucketsSentence(reload.push)}`];
  const shown = ranks.slice(0, Math.max(1, rows - OTHER_ROWS - buckets.length));
  const bars = shown.map((rank) => rankLine(rank, layersOf(reload, ranks.length), rankName(rank), columns));
  const notes = progress.notes.slice(-SHOWN_NOTES).map((note) => `  ${note}`);
  const more = shown.length < ranks.length ? [`  and ${countOf(ranks.length - shown.length, "rank")} more`] : [];
  return [title, ...waits, ...buckets, ...bars, ...more, ...notes].map((line) => cut(line, columns));
}

/** By the events, or by the record where they have not told yet. */
function isEnded({ state, reload }: Progress): boolean {
  return TERMINAL_STATES.includes(state) || TERMINAL_STATES.includes(reload.state);
}

function rankLine(rank: RankProgress, layers: number, name: string, columns: number): string {
  const done = Math.min(rank.layers_done, layers);
  const ready = rank.state === "prepared" || rank.state === "swapped";
  // A rollback that takes an intact undo back is prepared without loading a layer.
  const isUndo = ready && done === 0 && layers > 0;
  const count = isUndo ? "undo" : `${String(done).padStart(String(layers).length)}/${layers}`;
  const tail = `${count}  ${rank.state.padEnd(10)} ${formatBytes(rank.bytes_read)} read${buffersWords(rank)}`;
  const width = Math.max(5, Math.min(MAX_BAR_COLUMNS, columns - name.length - tail.length - 6));
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
function reasonOf({ reload, state }: Pick<Progress, "reload" | "state">): string | null {
  return reload.state === state ? reload.pending_reason : null;
}

/** Layers of one rank: the plan's, as soon as there is a plan. */
function layersOf(reload: ReloadView, ranks: number): number {
  if (reload.layers.length > 0) return reload.layers.length;
  return ranks === 0 ? 0 : Math.round(reload.progress.layers_total / ranks);
}

const cut = (line: string, columns: number) =>
  line.length > columns ? `${line.slice(0, Math.max(0, columns - 1))}…` : line;

/** What changed from one to the next, as lines for a log; `before` is null where nothing has been said yet. */
export function changeLines(before: Progress | null, after: Progress): string[] {
  const { reload, state } = after;
  const id = reload.reload_id;
  const reason = reasonOf(after);
  const lines: string[] = [];
  if (state !== before?.state) lines.push(`${id} ${state}`);
  // Elsewhere the ranks' lines say how it goes on; in the queue, and at first, nothing else does.
  const isSaid = before !== null && (state !== "queued" || reason === reasonOf(before));
  if (reason !== null && !isSaid) lines.push(`${id} ${waitsWords(reason)}`);
  if (reload.push?.finished === true && before?.reload.push?.finished !== true) {
    lines.push(`${id} all sent: ${bucketsSentence(reload.push)}`);
  }
  for (const [key, rank] of after.ranks) {
    if (before?.ranks.get(key)?.state === rank.state) continue;
    lines.push(`${id} ${rankName(rank)} ${rank.state}, ${countOf(rank.layers_done, "layer")} done`);
  }
  return [...lines, ...after.notes.slice(before?.notes.length ?? 0).map((note) => `${id} ${note}`)];
}

/** For a log in which nothing has stood for long: a reader must not take it for dead. */
export function stillLine({ reload, state, ranks }: Progress): string {
  const layers = layersOf(reload, ranks.size) * ranks.size;
  const done = [...ranks.values()].reduce((sum, rank) => sum + rank.layers_done, 0);
  const words = layers === 0 || state === "queued" ? "" : `, ${done} of ${countOf(layers, "layer")} done`;
  const reason = reasonOf({ reload, state });
  return `${reload.reload_id} still ${state}${words}${reason === null ? "" : `, ${waitsWords(reason)}`}`;
}
