// A rank's progress in a reload, told some times a second and when it is prepared and swapped: into the reload's hash, its
// event stream and, as a hint, its channel. Best effort: the protocol never goes by it.

import { readFileSync, writeFileSync } from "node:fs";
import type { Logger } from "pino";
import type { FillReport, LayerReport } from "../native/native.js";
import type { ErrorReport } from "../orchestrator/contract/errors.js";
import type { RankPush } from "../orchestrator/contract/push.js";
import type { RankProgress, ReloadEvents } from "../orchestrator/contract/reload.js";
import type { EventStore } from "../orchestrator/fleet/event-store.js";
import { RANK_FIELD, type RankReport } from "../orchestrator/fleet/record-store.js";

export interface ProgressReport {
  readonly progress: RankProgress;
  attempted(): void;
  /** Some of a layer's matrices, or rows of them, are staged. */
  layerWritten(report: LayerReport): void;
  /** All of a layer is. */
  layerComplete(layer: number): void;
  /** A slice was cut out of a bucket into buffers. */
  cut(report: FillReport): void;
  pushed(push: RankPush): void;
  /** `prepared` and `swapped` are told at once; what comes before them may be over sooner than it is worth telling. */
  phase(state: RankProgress["state"], times?: Partial<Pick<RankProgress, "finalize_ms" | "swap_ms">>): void;
  retry(layer: string, attempt: number, error: ErrorReport): void;
}

const REPORT_EVERY_MS = 100;

export function openReport(
  events: EventStore,
  log: Logger,
  reload: string,
  who: Pick<RankProgress, "replica" | "rank" | "incarnation">,
  layerCount: number,
  pinnedBytes: () => number,
): ProgressReport {
  const progress: RankProgress = { ...who, ...NOTHING_DONE };
  const done = new Array<string>(layerCount).fill("0");
  let soon: NodeJS.Timeout | null = null;
  resetPeakMemory();

  function tell<Name extends keyof ReloadEvents>(name: Name, payload: ReloadEvents[Name]): void {
    progress.peak_memory_bytes = peakMemoryBytes();
    progress.pinned_bytes = Math.max(progress.pinned_bytes, pinnedBytes());
    const told = withRoundTimes(progress);
    const report: RankReport = { progress: told, layersDone: done.join("") };
    const field = `${RANK_FIELD}${who.replica}/${who.rank}`;
    events
      .tell({ reload, field, value: report, name, payload: payload === progress ? told : payload })
      .catch((error: unknown) => log.warn({ reload, err: error }, "progress could not be reported"));
  }

  function tellNow(): void {
    if (soon !== null) clearTimeout(soon);
    soon = null;
    tell("progress", progress);
  }

  function tellSoon(): void {
    soon ??= setTimeout(tellNow, REPORT_EVERY_MS).unref();
  }

  function layerComplete(layer: number): void {
    if (done[layer] === "0") progress.layers_done += 1;
    done[layer] = "1";
    tellSoon();
  }

  return {
    progress,
    attempted: () => void progress.attempts++,
    layerWritten(report) {
      addLayer(progress, report);
      tellSoon();
    },
    layerComplete,
    cut({ bytesRead, readMs }) {
      progress.bytes_read += bytesRead;
      progress.read_ms += readMs;
      tellSoon();
    },
    pushed(push) {
      progress.push = push;
      tellSoon();
    },
    phase(state, times = {}) {
      Object.assign(progress, { state }, times);
      if (state === "prepared" || state === "swapped") tellNow();
      else tellSoon();
    },
    retry(layer, attempt, error) {
      progress.retries += 1;
      tell("retry", {
        replica: who.replica,
        rank: who.rank,
        layer,
        attempt,
        error: { ...error, details: { ...error.details } },
      });
    },
  };
}

/** Sums of milliseconds have digits that mean nothing. */
function withRoundTimes(progress: RankProgress): RankProgress {
  const rounded = Object.entries(progress).map(([field, value]) =>
    field.endsWith("_ms") && typeof value === "number" ? [field, Math.round(value * 100) / 100] : [field, value],
  );
  return Object.fromEntries(rounded) as RankProgress;
}

const NOTHING_DONE = {
  state: "waiting",
  layers_done: 0,
  attempts: 0,
  retries: 0,
  bytes_read: 0,
  bytes_written: 0,
  read_ms: 0,
  place_ms: 0,
  quantize_ms: 0,
  write_ms: 0,
  finalize_ms: 0,
  swap_ms: 0,
  peak_memory_bytes: 0,
  pinned_bytes: 0,
  push: null,
} as const satisfies Omit<RankProgress, "replica" | "rank" | "incarnation">;

export function addLayer(progress: RankProgress, report: LayerReport): void {
  progress.bytes_read += report.bytesRead;
  progress.bytes_written += report.bytesWritten;
  progress.read_ms += report.readMs;
  progress.place_ms += report.placeMs;
  progress.quantize_ms += report.quantizeMs;
  progress.write_ms += report.writeMs;
}

/** Linux counts a new high-water mark from here; elsewhere the process's own stands in. */
function resetPeakMemory(): void {
  try {
    writeFileSync("/proc/self/clear_refs", "5");
  } catch {
    // then the mark is the process's, not the reload's
  }
}

/** The highest resident set size since the reset, as the kernel measured it. */
function peakMemoryBytes(): number {
  try {
    const kibibytes = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync("/proc/self/status", "utf8"))?.[1];
    if (kibibytes !== undefined) return Number(kibibytes) * 1024;
  } catch {
    // no /proc here
  }
  return process.resourceUsage().maxRSS * 1024;
}
