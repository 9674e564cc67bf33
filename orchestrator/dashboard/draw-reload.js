// One reload -> its card, which is also the head of its page. Pure.

import {
  bytes,
  cell,
  count,
  h,
  heading,
  line,
  milliseconds,
  progressBar,
  reloadLink,
  statePill,
  table,
} from "./nodes.js";
import { isEnded } from "./store.js";

const SHOWN_RETRIES = 3;

/** `entry`: what the store knows of the reload. */
export function reloadCard(entry) {
  const { reload } = entry;
  return h("article", { key: reload.reload_id }, cardTitle(reload, "h2"), reloadState(entry, SHOWN_RETRIES));
}

export function cardTitle(reload, tag) {
  return h(
    "div",
    { class: "title" },
    h(tag, { tabindex: tag === "h1" ? "-1" : null }, reloadName(reload)),
    statePill(reload.state),
    h("span", { class: "quiet" }, `${reload.fleet} · ${reload.recipe} · `, reloadLink(reload.reload_id)),
  );
}

export function reloadName({ kind, source, weight_version: version }) {
  if (kind === "rollback") return `Rollback to ${version}`;
  return source === "push" ? `Push of ${version}` : `Reload to ${version}`;
}

/** How far it is, and all that is odd about it. */
export function reloadState({ reload, log, sent }, shownRetries) {
  const retries = log.filter(({ name }) => name === "retry");
  return [
    reload.pending_reason === null ? null : line(waitingText(reload.pending_reason), "warn"),
    reload.error === null ? null : line(`${reload.error.code}: ${reload.error.message}`, "bad"),
    reload.push === null ? layersBar(reload) : pushState(reload, sent),
    layerGrid(reload),
    reload.ranks.length === 0 ? null : rankTable(reload),
    ...reload.warnings.map((warning) => line(warningText(warning), "warn")),
    ...retries.slice(-shownRetries).map(({ payload }) => line(retryText(payload), "warn")),
  ];
}

/** Most reasons begin with the word. */
const waitingText = (reason) => (reason.startsWith("waiting") ? `W${reason.slice(1)}.` : `Waiting: ${reason}.`);

function layersBar(reload) {
  const { layers_done: done, layers_total: total } = reload.progress;
  if (total === 0) return null;
  // A rollback that takes an intact undo back loads no layer.
  const isOver = reload.state === "committed" || reload.state === "committing";
  return labelledBar(isOver ? total : done, total, `${done} of ${count(total, "layer")}, all ranks together`);
}

function pushState(reload, sent) {
  const { buckets, finished, partial } = reload.push;
  const said = [
    `${count(buckets.accepted, "bucket")} accepted, ${buckets.consumed} consumed`,
    buckets.wanted.length === 0 ? null : `wanted again: ${buckets.wanted.join(", ")}`,
    partial ? "some modules only" : null,
    finished ? "all sent" : isEnded(reload.state) ? "never finished" : "more to be sent",
  ];
  const words = line(said.filter((part) => part !== null).join(" · "), buckets.wanted.length > 0 ? "warn" : "");
  return [sent === null ? layersBar(reload) : sentBar(sent), words];
}

function sentBar({ elements, of, tensors, ofTensors }) {
  const percent = of === 0 ? 100 : Math.floor((100 * elements) / of);
  const label = `Rows received: ${percent} %, ${tensors} of ${count(ofTensors, "tensor")} whole`;
  return labelledBar(elements, of, label);
}

const labelledBar = (done, total, label) =>
  h("div", { class: "labelled" }, progressBar(done, total, label), h("span", { class: "quiet" }, label));

function layerGrid(reload) {
  const ranks = Math.max(reload.ranks.length, 1);
  const cells = reload.layers.map(({ name, ranks_done: done }) => {
    const className = done >= ranks ? "all" : done > 0 ? "some" : "";
    return h("li", { class: className, title: `${name}: ${done} of ${count(ranks, "rank")}` });
  });
  return cells.length === 0 ? null : h("ul", { class: "layers", "aria-label": "Layers loaded" }, cells);
}

function rankTable(reload) {
  const layers = reload.layers.length;
  const columns = columnsOf(reload);
  const headings = [
    ...["Rank", "State", "Layers"].map((name) => heading(name)),
    ...columns.map(([name, , className]) => heading(name, `number ${className}`)),
  ];
  const rows = reload.ranks.map((rank) =>
    h(
      "tr",
      { key: `${rank.replica}/${rank.rank}` },
      cell(`${rank.replica}/${rank.rank}`),
      cell(rankState(rank, reload), rank.state === "lost" ? "bad" : ""),
      cell(progressBar(rank.layers_done, layers, `${rank.layers_done} of ${count(layers, "layer")}`)),
      columns.map(([, read, className]) => cell(read(rank), `number ${className}`)),
    ),
  );
  return table(`Ranks of reload ${reload.reload_id}`, headings, rows);
}

/** What ranks have told last is how far they were when the reload ended. */
function rankState({ state }, reload) {
  const isUnderWay = state !== "lost" && state !== "swapped";
  return isUnderWay && isEnded(reload.state) && reload.state !== "committed" ? `stopped (${state})` : state;
}

/** [heading, value of a rank, class]: a push's and a clean reload's have what says something. */
function columnsOf({ push, ranks }) {
  const buffers = ({ push: own }) => own?.buffers;
  const now = (rank) => bytes((buffers(rank)?.host_bytes ?? 0) + (buffers(rank)?.device_bytes ?? 0));
  const most = (rank) => bytes((buffers(rank)?.peak_host_bytes ?? 0) + (buffers(rank)?.peak_device_bytes ?? 0));
  const pushed = [
    ["Buckets", (rank) => rank.push?.buckets_taken ?? 0, ""],
    ["Buffered", now, ""],
    ["At most", most, ""],
  ];
  const timed = ["read", "place", "quantize", "write", "swap"].map((phase) => [
    phase === "swap" ? "Swap" : `${phase[0].toUpperCase()}${phase.slice(1)} time`,
    (rank) => milliseconds(rank[`${phase}_ms`]),
    "wide",
  ]);
  return [
    ["Read", (rank) => bytes(rank.bytes_read), ""],
    ["Written", (rank) => bytes(rank.bytes_written), ""],
    ...(push === null ? [] : pushed),
    ...timed,
    ...(ranks.some(({ retries }) => retries > 0) ? [["Retries", ({ retries }) => retries || "", ""]] : []),
  ];
}

export function warningText({ code, message, details }) {
  const ranks = Array.isArray(details?.ranks) ? ` (ranks ${details.ranks.join(", ")})` : "";
  return `Warning ${code}: ${message}${ranks}`;
}

export function retryText({ replica, rank, layer, attempt, error }) {
  return `Try ${attempt} of rank ${replica}/${rank}, ${layer} failed: ${error.code}: ${error.message}`;
}
