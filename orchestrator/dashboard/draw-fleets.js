// Fleets as the API gives them -> what is drawn. Pure.

import { cell, count, h, heading, line, milliseconds, pageOf, pill, table } from "./nodes.js";

export function fleetCards(fleets) {
  if (fleets.length > 0) return fleets.map(fleetCard);
  return [line("No worker has registered yet, so there is no fleet.", "quiet")];
}

function fleetCard(fleet) {
  const title = h(
    "div",
    { class: "title" },
    h("h2", {}, `Fleet ${fleet.fleet}`),
    fleet.routable ? pill("routable", "good") : pill(fleet.torn ? "torn" : "not routable", fleet.torn ? "bad" : "warn"),
    fleet.engines.state === "running" ? null : pill(`engines ${fleet.engines.state}`, "warn"),
    h("span", {}, "weights ", h("strong", {}, fleet.weight_version ?? "none yet")),
    h("span", { class: "quiet" }, fleetFacts(fleet)),
  );
  const reason = fleet.not_routable_reason === null ? null : line(fleet.not_routable_reason, "warn");
  const drained = fleet.drained_replicas.map(({ replica, state }) =>
    line(`Replica ${replica} is drained${state === "joining" ? " and joining again" : ""}`, "warn"),
  );
  const headings = ["Rank", "Lease", "Weights", "Arena", "Device", "Host"].map((name) => heading(name));
  const ranks = table(`Ranks of fleet ${fleet.fleet}`, headings, fleet.ranks.map(rankRow));
  return h("article", { key: fleet.fleet }, title, reason, drained, waitingLine(fleet), ranks, attached(fleet));
}

/** Engines that compute with the ranks' arenas, and why one of them stands still. */
function attached({ fleet, attached_engines: engines }) {
  if (engines.length === 0) return null;
  const headings = ["Engine", "State", "Ranks", "Address", "Last stop", "Still", "Then served"].map((name) =>
    heading(name),
  );
  const troubles = engines.flatMap(({ id, name, trouble }) =>
    trouble === null ? [] : [line(`Engine ${name} ${id} stands still: ${trouble}`, "warn")],
  );
  return [table(`Engines of fleet ${fleet}`, headings, engines.map(engineRow)), troubles];
}

const ENGINE_CLASS = { ready: "good", starting: "busy", waiting: "busy", gone: "bad" };

function engineRow({ id, name, version, state, ranks, url, host, last_stop: stop }) {
  const places = ranks.map(({ replica, rank, pid }) => `${replica}/${rank}${pid === null ? "" : ` · ${pid}`}`);
  return h(
    "tr",
    { key: id },
    cell(`${name} ${version}`),
    cell(pill(state, ENGINE_CLASS[state] ?? "quiet")),
    cell(places.join(", ")),
    cell(url ?? host),
    cell(milliseconds(stop?.stop_ms)),
    cell(milliseconds(stop?.still_ms)),
    cell(stop?.weight_version),
  );
}

function fleetFacts(fleet) {
  const replicas = `${count(fleet.replicas, "replica")} of ${fleet.tensor_parallel_size}`;
  const experts = fleet.expert_parallel ? " · expert parallel" : "";
  const how = fleet.rollback_from === "undo" ? "instantly" : "from its source (a full load)";
  const back = fleet.can_roll_back ? ` · can roll back to ${fleet.rollback_version} ${how}` : "";
  return replicas + experts + back;
}

const NAMED_WAITING = 3;

function waitingLine({ queued_reload_ids: ids }) {
  if (ids.length === 0) return null;
  const links = ids.slice(0, NAMED_WAITING).map((id) => [" ", h("a", { href: pageOf(id) }, h("code", {}, id))]);
  const more = ids.length > NAMED_WAITING ? ` and ${ids.length - NAMED_WAITING} more` : null;
  return h("p", { class: "quiet" }, `${count(ids.length, "reload")} waiting:`, links.flat(), more);
}

function rankRow(rank) {
  const generation = rank.arena_generation === null ? "" : `, generation ${rank.arena_generation}`;
  return h(
    "tr",
    { key: `${rank.replica}/${rank.rank}` },
    cell(`${rank.replica}/${rank.rank}`),
    cell(rankPill(rank)),
    cell(rank.weight_version),
    cell(rank.arena_state + generation, rank.arena_state === "torn" ? "bad" : ""),
    cell(rank.device),
    cell(`${rank.host} · ${rank.pid}`),
  );
}

function rankPill({ alive, ready, drained }) {
  if (!alive) return pill("lost", "bad");
  if (drained) return pill("drained", "warn");
  return ready ? pill("ready", "good") : pill("catching up", "warn");
}
