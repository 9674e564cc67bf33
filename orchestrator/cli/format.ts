// Values -> words and tables for people.

import { countOf } from "../contract/count-of.js";
import type { HooksView } from "../contract/hooks.js";
import type { FleetView, PlanView, RankProgress, ReloadView } from "../contract/reload.js";
import { errorWords, inCliWords } from "./cli-words.js";

export function formatMs(ms: number | null): string {
  if (ms === null) return "-";
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  if (ms < 1_000) return `${Math.round(ms)} ms`;
  if (ms < 120_000) return `${(ms / 1_000).toFixed(2)} s`;
  return `${(ms / 60_000).toFixed(1)} min`;
}

export function formatBytes(bytes: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let value = bytes;
  let unit = 0;
  while (value >= 1_000 && unit < units.length - 1) {
    value /= 1_000;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** A record's `pending_reason` as the end of a sentence: "waits for ranks 0/0 to swap". */
export function waitsWords(reason: string): string {
  if (reason.startsWith("reading ")) return reason;
  return reason.startsWith("waiting ") ? reason.replace("waiting", "waits") : `waits: ${reason}`;
}

/** Columns as wide as their widest cell; a column whose header begins with ">" is set flush right. */
export function formatTable(header: readonly string[], rows: readonly (readonly string[])[]): string[] {
  const titles = header.map((title) => title.replace(/^>/, ""));
  const widths = titles.map((title, at) => Math.max(title.length, ...rows.map((row) => row[at]?.length ?? 0)));
  const line = (cells: readonly string[]) =>
    widths
      .map((width, at) =>
        header[at]?.startsWith(">") ? (cells[at] ?? "").padStart(width) : (cells[at] ?? "").padEnd(width),
      )
      .join("  ")
      .trimEnd();
  return [line(titles), ...rows.map(line)];
}

/** "rank 0/1": replica and rank, as in reasons, logs and directories. */
export function rankName({ replica, rank }: { replica: number; rank: number }): string {
  return `rank ${replica}/${rank}`;
}

/** How it ended, or where it is, in one line. */
export function reloadSentence(reload: ReloadView): string {
  const what = `${reload.kind} ${reload.reload_id} (weight version ${reload.weight_version}, fleet ${reload.fleet})`;
  const { timing_ms: timing } = reload;
  if (reload.state === "committed") {
    const stopped = reload.engine_stopped_ms === null ? "" : `, engines stopped ${formatMs(reload.engine_stopped_ms)}`;
    return `committed: ${what} in ${formatMs(timing.total)}${stopped}`;
  }
  if (reload.error !== null) return `${reload.state}: ${what}: ${errorWords(reload.error)}`;
  if (reload.superseded_by !== null) return `superseded: ${what} by ${reload.superseded_by}`;
  const reason = reload.pending_reason === null ? "" : `, ${waitsWords(reload.pending_reason)}`;
  return `${reload.state}: ${what}${reason}`;
}

/** Ranks that warn of the same share one warning. */
export function warningText({ code, message, details }: ReloadView["warnings"][number]): string {
  const ranks = Array.isArray(details.ranks) ? ` (ranks ${details.ranks.join(", ")})` : "";
  return `${code}: ${inCliWords(message)}${ranks}`;
}

export function reloadLines(reload: ReloadView): string[] {
  // What ranks have told last is how far they were when the reload failed.
  const isStopped = reload.finished_at !== null && reload.state !== "committed";
  const rows = reload.ranks.map((rank) => rankRow(rank, isStopped));
  return [
    reloadSentence(reload),
    ...reload.warnings.map((warning) => `warning: ${warningText(warning)}`),
    ...formatTable(PHASE_HEADER, [phaseRow(reload)]),
    ...(rows.length === 0 ? [] : [...formatTable(RANK_HEADER, rows), THREADS_NOTE]),
    ...pushLines(reload),
  ];
}

/** "12 buckets, 10 consumed, wanted again: 3, 4". */
export function bucketsSentence({ buckets }: NonNullable<ReloadView["push"]>): string {
  const wanted = buckets.wanted.length === 0 ? "" : `, wanted again: ${buckets.wanted.join(", ")}`;
  return `${countOf(buckets.accepted, "bucket")}, ${buckets.consumed} consumed${wanted}`;
}

const PUSH_HEADER = [
  "rank",
  ">buckets",
  ">whole",
  ">streamed",
  ">buffered",
  ">buffers now",
  ">at most",
  ">on the device",
  ">at most",
];

function pushLines({ push, ranks }: ReloadView): string[] {
  if (push === null) return [];
  const rows = ranks.flatMap((rank) => {
    if (rank.push === null) return [];
    const { buckets_taken: taken, paths, buffers } = rank.push;
    const counts = [taken, paths.whole, paths.streamed, paths.buffered].map(String);
    const { host_bytes, peak_host_bytes, device_bytes, peak_device_bytes } = buffers;
    const held = [host_bytes, peak_host_bytes, device_bytes, peak_device_bytes].map(formatBytes);
    return [[rankName(rank), ...counts, ...held]];
  });
  const sent = push.finished ? "all sent" : "not all sent";
  return [`${sent}: ${bucketsSentence(push)}`, ...(rows.length === 0 ? [] : formatTable(PUSH_HEADER, rows))];
}

const RANK_HEADER = [
  "rank",
  "state",
  ">layers",
  ">read",
  ">written",
  ">reading",
  ">placing",
  ">quantizing",
  ">writing",
  ">swap",
];
const THREADS_NOTE = "reading to writing: summed over a rank's threads, so together more than the load took";

function rankRow(rank: RankProgress, isStopped: boolean): string[] {
  const times = [rank.read_ms, rank.place_ms, rank.quantize_ms, rank.write_ms, rank.swap_ms].map(formatMs);
  const bytes = [formatBytes(rank.bytes_read), formatBytes(rank.bytes_written)];
  const state = isStopped ? `stopped (${rank.state})` : rank.state;
  return [rankName(rank), state, String(rank.layers_done), ...bytes, ...times];
}

const PHASE_HEADER = ["weights", "recipe", ">queued", ">plan", ">load", ">finalize", ">commit", ">total", ">stopped"];

function phaseRow(reload: ReloadView): string[] {
  const { queued, plan, load, finalize, commit, total } = reload.timing_ms;
  const times = [queued, plan, load, finalize, commit, total, reload.engine_stopped_ms].map(formatMs);
  const name = reload.kind === "rollback" ? `back to ${reload.weight_version}` : reload.weight_version;
  return [name, reload.recipe, ...times];
}

/** A table of where the time went, a row a reload. */
export function phaseTable(reloads: readonly ReloadView[]): string[] {
  return formatTable(PHASE_HEADER, reloads.map(phaseRow));
}

/** "2026-01-31 17:04:05" by this machine's clock and time zone. */
export function localTime(timestamp: string): string {
  // Swedish is ISO 8601 without the T.
  return new Date(timestamp).toLocaleString("sv-SE");
}

export function reloadTable(reloads: readonly ReloadView[]): string[] {
  const rows = reloads.map((reload) => [
    reload.reload_id,
    localTime(reload.created_at),
    reload.fleet,
    reload.kind,
    reload.weight_version,
    reload.state,
    `${reload.progress.layers_done}/${reload.progress.layers_total}`,
    formatMs(reload.timing_ms.total),
    reload.error?.code ?? reload.pending_reason ?? "",
  ]);
  return formatTable(["reload", "submitted", "fleet", "kind", "weights", "state", ">layers", ">total", "reason"], rows);
}

export function fleetLines(fleet: FleetView): string[] {
  const routable = fleet.routable ? "routable" : `not routable: ${fleet.not_routable_reason ?? "no reason given"}`;
  const back = fleet.can_roll_back ? `, ${rollbackWords(fleet)}` : "";
  const rows = fleet.ranks.map((rank) => [
    rankName(rank),
    rank.device,
    rank.host,
    String(rank.pid),
    rankState(rank),
    rank.weight_version ?? "-",
    rank.arena_state,
    String(rank.arena_generation ?? "-"),
    rank.undo_weight_version ?? "-",
  ]);
  return [
    `fleet ${fleet.fleet}: ${fleet.replicas} x ${countOf(fleet.tensor_parallel_size, "rank")}${expertsWord(fleet)}, weight version ` +
      `${fleet.weight_version ?? "none"} (epoch ${fleet.epoch}), ${routable}${back}`,
    ...fleet.drained_replicas.map(({ replica, state }) => `replica ${replica} is drained: ${DRAINED_WORDS[state]}`),
    ...enginesLines(fleet),
    ...formatTable(["rank", "device", "host", ">pid", "state", "weights", "arena", ">generation", "undo"], rows),
    ...attachedLines(fleet.attached_engines),
  ];
}

/** Engines that compute with the ranks' arenas. */
function attachedLines(engines: FleetView["attached_engines"]): string[] {
  if (engines.length === 0) return [];
  const rows = engines.map(({ name, version, state, host, url, ranks, last_stop: stop }) => [
    `${name} ${version}`,
    state,
    ranks.map(({ replica, rank }) => `${replica}/${rank}`).join(" "),
    url ?? host,
    stop === null ? "-" : formatMs(stop.stop_ms),
    stop?.weight_version ?? "-",
  ]);
  const troubles = engines.flatMap(({ name, version, id, trouble }) =>
    trouble === null ? [] : [`engine ${name} ${version} ${id} stands still: ${trouble}`],
  );
  return [...formatTable(["engine", "state", "ranks", "at", ">last stop", "then served"], rows), ...troubles];
}

/** What a rollback costs: a swap, or a load like any other. */
function rollbackWords({ rollback_version: version, rollback_from: from }: FleetView): string {
  return `can roll back to ${version ?? "-"} ${from === "undo" ? "instantly" : "by loading it from its source"}`;
}

const expertsWord = ({ expert_parallel: ep }: { expert_parallel: boolean }) => (ep ? ", expert parallel" : "");

const DRAINED_WORDS = {
  out: "the others go on without it; `layercast undrain` takes it back",
  joining: "it is in again once all its ranks hold what is committed",
} as const;

function rankState({ alive, ready, drained }: FleetView["ranks"][number]): string {
  if (!alive) return "lost";
  if (drained) return "drained";
  return ready ? "ready" : "alive";
}

function enginesLines({ engines }: FleetView): string[] {
  if (engines.state === "running") return [];
  const why = engines.error === null ? "" : `: ${errorWords(engines.error)}`;
  return [`engines ${engines.state} for reload ${engines.reload_id ?? "-"}${why}`];
}

export function hooksLines(fleet: string, hooks: HooksView): string[] {
  const rows = (["pause", "resume"] as const).flatMap((name) => {
    const { url, method, body } = hooks[name];
    const urls = typeof url === "string" ? [url] : url;
    return urls.map((one) => [name, method, one, body === null ? "" : JSON.stringify(body)]);
  });
  return [
    `fleet ${fleet}: engines answer within ${formatMs(hooks.timeout_ms)}; on failure ${hooks.on_failure}`,
    ...formatTable(["hook", "method", "url", "body"], rows),
  ];
}

export function planLines(plan: PlanView): string[] {
  const layers = plan.layers.map((layer) => [
    layer.name,
    String(layer.job),
    String(layer.kernel_tensors),
    formatBytes(layer.read_bytes),
    formatBytes(layer.held_bytes),
  ]);
  const ranks = plan.ranks.map((rank) => [
    `rank ${rank.rank}`,
    formatBytes(rank.read_bytes),
    formatBytes(rank.held_bytes),
    formatBytes(rank.arena_bytes),
    formatBytes(rank.peak_memory_bytes),
    formatBytes(rank.device_memory_bytes),
  ]);
  return [
    `${plan.model_type}, tensor-parallel size ${plan.tensor_parallel_size}${expertsWord(plan)}, recipe ${plan.recipe}: ` +
      `${countOf(plan.layers.length, "layer")} in ${countOf(plan.jobs_per_rank, "job")} a rank`,
    `layout ${plan.layout_digest}`,
    ...formatTable(["layer", ">job", ">kernel tensors", ">read", ">held"], layers),
    ...formatTable(["rank", ">reads", ">holds", ">arena", ">peak memory", ">on a GPU"], ranks),
    ...skippedLines(plan.skipped),
    ...plan.warnings.map(({ code, message }) => `warning: ${code}: ${message}`),
  ];
}

/** A line a tensor while they are few; then one a reason, for a layer of experts has over a thousand. `--json` has them all. */
function skippedLines(skipped: PlanView["skipped"]): string[] {
  const byReason = new Map<string, string[]>();
  for (const { name, reason } of skipped) {
    const names = byReason.get(reason);
    if (names === undefined) byReason.set(reason, [name]);
    else names.push(name);
  }
  return [...byReason].flatMap(([reason, names]) =>
    names.length <= NAMES_PRINTED
      ? names.map((name) => `skipped: ${name} (${reason})`)
      : [`skipped: ${countOf(names.length, "tensor")}, from ${names[0]} to ${names.at(-1)} (${reason})`],
  );
}

const NAMES_PRINTED = 10;
