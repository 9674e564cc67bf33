// Reloads -> the rows of the table of all reloads. Pure.

import { cell, h, milliseconds, reloadLink, statePill, time } from "./nodes.js";

export function listRows(reloads) {
  return reloads.flatMap((reload) => {
    const why = reload.error === null ? reload.pending_reason : `${reload.error.code}: ${reload.error.message}`;
    const { plan, load, finalize, commit, total } = reload.timing_ms;
    const phases = [plan, load, finalize, commit].map((ms) => cell(milliseconds(ms), "number wide"));
    const row = h(
      "tr",
      { key: reload.reload_id, class: why === null ? "" : "explained" },
      cell(time(reload.created_at)),
      cell(statePill(reload.state)),
      cell(reloadLink(reload.reload_id)),
      cell(reload.fleet),
      cell(reload.kind === "rollback" ? `${reload.weight_version} (rollback)` : reload.weight_version),
      cell(reload.recipe, "wide"),
      phases,
      cell(milliseconds(total), "number"),
      cell(milliseconds(reload.engine_stopped_ms), "number"),
    );
    if (why === null) return [row];
    const className = `why ${reload.error === null ? "warn" : "bad"}`;
    return [row, h("tr", { key: `${reload.reload_id} why` }, h("td", { colspan: "12", class: className }, why))];
  });
}

const option = (value, text, chosen) =>
  h("option", { key: `=${value}`, value, selected: value === chosen ? "selected" : null }, text);

/** Of those that are there, and the one that is chosen. */
export function fleetOptions(fleets, chosen) {
  const names = [...new Set([...fleets.map(({ fleet }) => fleet), chosen])].filter((name) => name !== "").sort();
  return [h("option", { key: "all" }, "all fleets"), ...names.map((name) => option(name, name, chosen))];
}
