// One reload, past or present -> a page of its own. Pure.

import { cardTitle, reloadState, retryText, warningText } from "./draw-reload.js";
import { cell, copyButton, count, h, heading, line, milliseconds, pageOf, table, time } from "./nodes.js";

/** `entry` is null while the reload is not known; `problem`: why it cannot be read. */
export function reloadPage(id, entry, problem) {
  const back = h("p", {}, h("a", { href: "#/" }, "All fleets and reloads"));
  if (entry === null) {
    const words = problem === null ? line(`Reading reload ${id}`, "quiet") : line(problem, "bad");
    return [back, h("article", {}, h("h1", { tabindex: "-1" }, `Reload ${id}`), words)];
  }
  const { reload, log } = entry;
  return [
    back,
    h("article", { key: id }, cardTitle(reload, "h1"), reloadState(entry, 0)),
    h("article", { key: "times" }, h("h2", {}, "Times"), times(reload)),
    h("article", { key: "facts" }, h("h2", {}, "Request and result"), facts(reload)),
    log.length === 0 ? null : h("article", { key: "events" }, h("h2", {}, "Events"), events(log)),
    layers(reload),
  ].filter((part) => part !== null);
}

function times({ timing_ms: timing, engine_stopped_ms: stopped }) {
  const phases = Object.entries({ ...timing, "engines stopped": stopped });
  const headings = phases.map(([name]) => heading(name[0].toUpperCase() + name.slice(1), "number"));
  return table("Times", headings, [
    h(
      "tr",
      {},
      phases.map(([, ms]) => cell(milliseconds(ms), "number")),
    ),
  ]);
}

function facts(reload) {
  const { superseded_by: newer, finished_at: finished } = reload;
  const rows = [
    ["Reload", h("span", { class: "id" }, h("code", {}, reload.reload_id), copyButton(reload.reload_id))],
    ["Submission", h("span", { class: "id" }, h("code", {}, reload.submission_id), copyButton(reload.submission_id))],
    ["Weight version", reload.weight_version],
    ["Weights before", reload.previous_weight_version ?? "none"],
    ["Source", reload.source ?? "none"],
    ["Recipe", reload.recipe],
    ["Epoch", reload.epoch ?? "none"],
    ["Live bytes changed", reload.live_changed ? "yes" : "no"],
    ["Submitted", time(reload.created_at)],
    ["Ended", finished === null ? "not yet" : time(finished)],
    ...(newer === null ? [] : [["Superseded by", h("a", { href: pageOf(newer) }, h("code", {}, newer))]]),
    ...Object.entries(reload.metadata).map(([name, value]) => [`Metadata: ${name}`, value]),
  ];
  return h(
    "dl",
    {},
    rows.map(([name, value]) => h("div", { key: name }, h("dt", {}, name), h("dd", {}, value))),
  );
}

function events(log) {
  const rows = log.map(({ id, name, payload }) => {
    const className = name === "state" ? "" : "warn";
    return h(
      "tr",
      { key: id },
      cell(time(Number(id.split("-")[0]))),
      cell(eventText(name, payload), `wrap ${className}`),
    );
  });
  return table("Events", [heading("Time"), heading("Event")], rows);
}

function eventText(name, payload) {
  switch (name) {
    case "state":
      return payload.error ? `${payload.state}: ${payload.error.code}: ${payload.error.message}` : payload.state;
    case "retry":
      return retryText(payload);
    case "warning":
      return warningText(payload);
    default:
      return `Bucket ${payload.bucket} is ${payload.state}`;
  }
}

function layers({ layers: all, ranks }) {
  if (all.length === 0) return null;
  const rows = all.map(({ name, ranks_done: done }) =>
    h("tr", { key: name }, cell(h("code", {}, name)), cell(`${done} of ${ranks.length}`, "number")),
  );
  const shown = table("Layers", [heading("Layer"), heading("Ranks that loaded it", "number")], rows);
  return h("article", { key: "layers" }, h("details", {}, h("summary", {}, count(all.length, "layer")), shown));
}
