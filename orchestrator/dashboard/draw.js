// Fleets and reloads as the API gives them -> DOM. Text is only ever set as text, never parsed as markup.

const STATE_CLASS = {
  committed: "good",
  failed: "bad",
  cancelled: "warn",
  superseded: "warn",
  queued: "quiet",
};

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== "") made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

const cell = (content, className = "") => element("td", { class: className }, content ?? "–");
const heading = (content, className = "") => element("th", { scope: "col", class: className }, content);
const pill = (text, className) => element("span", { class: `pill ${className}` }, text);
const statePill = (state) => pill(state, STATE_CLASS[state] ?? "busy");
const line = (text, className) => element("p", { class: className }, text);

function table(headings, rows) {
  const head = element("thead", {}, element("tr", {}, ...headings));
  return element("div", { class: "scroll" }, element("table", {}, head, element("tbody", {}, ...rows)));
}

function milliseconds(ms) {
  if (ms === null || ms === undefined) return "–";
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`;
}

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const step = count < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(count) / 10));
  return `${(count / 1024 ** step).toFixed(step === 0 ? 0 : 1)} ${units[step]}`;
}

function time(timestamp) {
  const at = new Date(timestamp);
  const today = at.toDateString() === new Date().toDateString();
  return today ? at.toLocaleTimeString() : at.toLocaleString();
}

export function drawFleets(section, fleets) {
  section.replaceChildren(...fleets.map(fleetCard));
  if (fleets.length === 0) section.append(line("No worker has registered yet, so there is no fleet.", "quiet"));
}

function fleetCard(fleet) {
  const title = element(
    "div",
    { class: "title" },
    element("h2", {}, `Fleet ${fleet.fleet}`),
    fleet.routable ? pill("routable", "good") : pill(fleet.torn ? "torn" : "not routable", fleet.torn ? "bad" : "warn"),
    fleet.engines.state === "running" ? null : pill(`engines ${fleet.engines.state}`, "warn"),
    element("span", {}, "weights ", element("strong", {}, fleet.weight_version ?? "none yet")),
    element("span", { class: "quiet" }, fleetFacts(fleet)),
  );
  const reason = fleet.not_routable_reason === null ? null : line(fleet.not_routable_reason, "warn");
  const headings = ["Rank", "Weights", "Arena", "Device", "Host", "Lease"].map((name) => heading(name));
  const drained = fleet.drained_replicas.map(({ replica, state }) =>
    line(`Replica ${replica} is drained${state === "joining" ? " and joining again" : ""}`, "warn"),
  );
  return element("article", {}, title, reason, ...drained, table(headings, fleet.ranks.map(rankRow)));
}

function fleetFacts(fleet) {
  const replicas = `${fleet.replicas} replica${fleet.replicas === 1 ? "" : "s"} of ${fleet.tensor_parallel_size}`;
  const experts = fleet.expert_parallel ? " · expert parallel" : "";
  const how = fleet.rollback_from === "undo" ? "instantly" : "from its source";
  const back = fleet.can_roll_back ? ` · can roll back to ${fleet.rollback_version} ${how}` : "";
  const waiting = fleet.queued_reload_ids.length === 0 ? "" : ` · ${fleet.queued_reload_ids.length} waiting`;
  return replicas + experts + back + waiting;
}

function rankRow(rank) {
  const arena =
    rank.arena_generation === null ? rank.arena_state : `${rank.arena_state}, generation ${rank.arena_generation}`;
  return element(
    "tr",
    {},
    cell(`${rank.replica}/${rank.rank}`),
    cell(rank.weight_version),
    cell(arena, rank.arena_state === "torn" ? "bad" : ""),
    cell(rank.device),
    cell(`${rank.host} · ${rank.pid}`),
    cell(rankPill(rank)),
  );
}

function rankPill({ alive, ready, drained }) {
  if (!alive) return pill("lost", "bad");
  if (drained) return pill("drained", "warn");
  return ready ? pill("ready", "good") : pill("catching up", "warn");
}

/** `running`: { reload, retry }, retry being the last job that will be tried again. */
export function drawRunning(section, running) {
  section.replaceChildren(...running.map(runningCard));
}

function runningCard({ reload, retry }) {
  const { layers_done: done, layers_total: total } = reload.progress;
  const title = element(
    "div",
    { class: "title" },
    element("h2", {}, `${reload.kind === "rollback" ? "Rollback" : "Reload"} to ${reload.weight_version}`),
    statePill(reload.state),
    element("span", { class: "quiet" }, `${reload.fleet} · ${reload.recipe} · `, element("code", {}, reload.reload_id)),
  );
  return element(
    "article",
    {},
    title,
    reload.pending_reason === null ? null : line(`Waiting: ${reload.pending_reason}`, "warn"),
    progressBar(done, total, `${done} of ${total} layers on all ranks`),
    layerGrid(reload),
    reload.ranks.length === 0 ? null : rankProgress(reload),
    retry === null ? null : line(retryText(retry), "warn"),
    reload.error === null ? null : line(`${reload.error.code}: ${reload.error.message}`, "bad"),
  );
}

function progressBar(done, total, label) {
  return element("progress", {
    value: String(done),
    max: String(Math.max(total, 1)),
    "aria-label": label,
    title: label,
  });
}

function layerGrid(reload) {
  const ranks = Math.max(reload.ranks.length, 1);
  const cells = reload.layers.map(({ name, ranks_done: done }) => {
    const className = done >= ranks ? "all" : done > 0 ? "some" : "";
    return element("li", { class: className, title: `${name}: ${done} of ${ranks} ranks` });
  });
  return cells.length === 0 ? null : element("ul", { class: "layers", "aria-label": "Layers loaded" }, ...cells);
}

function rankProgress(reload) {
  const headings = [
    ...["Rank", "State", "Layers"].map((name) => heading(name)),
    ...["Read", "Written", "Read time", "Quantize", "Swap", "Tries"].map((name) => heading(name, "number")),
  ];
  const layers = reload.layers.length;
  const rows = reload.ranks.map((rank) =>
    element(
      "tr",
      {},
      cell(`${rank.replica}/${rank.rank}`),
      cell(rank.state, rank.state === "lost" ? "bad" : ""),
      cell(progressBar(rank.layers_done, layers, `${rank.layers_done} of ${layers} layers`)),
      cell(bytes(rank.bytes_read), "number"),
      cell(bytes(rank.bytes_written), "number"),
      cell(milliseconds(rank.read_ms), "number"),
      cell(milliseconds(rank.quantize_ms), "number"),
      cell(milliseconds(rank.swap_ms), "number"),
      cell(String(rank.attempts), "number"),
    ),
  );
  return table(headings, rows);
}

function retryText(retry) {
  const where = `rank ${retry.replica}/${retry.rank}, ${retry.layer}`;
  return `Trying again (${where}, after try ${retry.attempt}): ${retry.error.code}: ${retry.error.message}`;
}

export function drawRecent(body, reloads) {
  body.replaceChildren(...reloads.flatMap(recentRows));
}

function recentRows(reload) {
  const why = reload.error === null ? reload.pending_reason : `${reload.error.code}: ${reload.error.message}`;
  const { plan, load, finalize, commit, total } = reload.timing_ms;
  const row = element(
    "tr",
    { class: why === null ? "" : "explained" },
    cell(element("time", { datetime: reload.created_at }, time(reload.created_at))),
    cell(element("code", {}, reload.reload_id)),
    cell(reload.fleet),
    cell(reload.kind === "rollback" ? `${reload.weight_version} (rollback)` : reload.weight_version),
    cell(reload.recipe),
    cell(statePill(reload.state)),
    ...[plan, load, finalize, commit, total, reload.engine_stopped_ms].map((ms) => cell(milliseconds(ms), "number")),
  );
  if (why === null) return [row];
  const className = `wrap ${reload.error === null ? "warn" : "bad"}`;
  return [row, element("tr", {}, element("td", { colspan: "12", class: className }, why))];
}
