// The dashboard: reads fleets and reloads every two seconds, follows each running reload by its event stream, and draws
// what it knows. Asks for the bearer token when the API wants one, and keeps it for this tab only.

import { drawFleets, drawRecent, drawRunning } from "/dashboard/draw.js";
import { followReload } from "/dashboard/events.js";

const POLL_MS = 2000;
/** A record is read again at most this often while its events come; it has the layers, which events do not. */
const RECORD_MS = 300;
/** An ended reload's card stays this long, so that its end can be seen. */
const LINGER_MS = 10_000;
const TERMINAL = ["committed", "failed", "cancelled", "superseded"];
const TOKEN_KEY = "layercast-token";

const at = (id) => document.getElementById(id);
/** By reload id: { reload, retry, endedAt, readAt, stop }. */
const followed = new Map();

async function call(path, options = {}) {
  const token = sessionStorage.getItem(TOKEN_KEY);
  const headers = { ...options.headers, ...(token === null ? {} : { authorization: `Bearer ${token}` }) };
  const response = await fetch(path, { ...options, headers, cache: "no-store" });
  if (response.status === 401) throw Object.assign(new Error("unauthorized"), { problem: await response.json() });
  return response;
}

async function read(path) {
  const response = await call(path);
  const body = await response.json();
  if (response.ok) return body;
  throw Object.assign(new Error(body.detail), { problem: body });
}

async function poll() {
  try {
    const [{ fleets }, { reloads }] = await Promise.all([read("/v1/fleets"), read("/v1/reloads?limit=20")]);
    drawFleets(at("fleets"), fleets);
    drawRecent(at("recent"), reloads);
    at("recent-empty").hidden = reloads.length > 0;
    for (const reload of reloads) follow(reload);
    showConnection("live", "good");
    at("token-form").hidden = true;
  } catch (error) {
    showFailure(error);
  }
  dropEnded();
  redraw();
}

function follow(reload) {
  if (TERMINAL.includes(reload.state) || followed.has(reload.reload_id)) return;
  const stop = new AbortController();
  const entry = { reload, retry: null, endedAt: null, readAt: 0, stop };
  followed.set(reload.reload_id, entry);
  const onEvent = (name, payload) => takeEvent(entry, name, payload);
  followReload(reload.reload_id, call, onEvent, stop.signal).then(async () => {
    await readRecord(entry);
    entry.endedAt = Date.now();
    redraw();
  });
}

function takeEvent(entry, name, payload) {
  const { reload } = entry;
  if (name === "state") Object.assign(reload, { state: payload.state, error: payload.error });
  else if (name === "retry") entry.retry = payload;
  else if (name === "progress") {
    const place = reload.ranks.findIndex((rank) => rank.replica === payload.replica && rank.rank === payload.rank);
    if (place < 0) reload.ranks.push(payload);
    else reload.ranks[place] = payload;
  }
  if (Date.now() - entry.readAt > RECORD_MS) readRecord(entry).then(redraw);
  redraw();
}

async function readRecord(entry) {
  entry.readAt = Date.now();
  try {
    entry.reload = await read(`/v1/reloads/${encodeURIComponent(entry.reload.reload_id)}`);
  } catch (error) {
    showFailure(error);
  }
}

function dropEnded() {
  for (const [id, entry] of followed) {
    if (entry.endedAt !== null && Date.now() - entry.endedAt > LINGER_MS) followed.delete(id);
  }
}

let drawing = false;
function redraw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    const waiting = ({ reload }) => (reload.state === "queued" ? 1 : 0);
    drawRunning(
      at("running"),
      [...followed.values()].sort((one, other) => waiting(one) - waiting(other)),
    );
  });
}

function showConnection(text, className) {
  at("connection").textContent = text;
  at("connection").className = `pill ${className}`;
}

function showFailure(error) {
  if (error.problem?.code === "unauthorized") {
    const form = at("token-form");
    if (sessionStorage.getItem(TOKEN_KEY) !== null) at("token-message").textContent = "That is not its token.";
    form.hidden = false;
    showConnection("token needed", "warn");
    return;
  }
  showConnection(error.problem === undefined ? "the orchestrator does not answer" : error.message, "bad");
}

at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN_KEY, at("token").value.trim());
  at("token").value = "";
  poll();
});

async function pollForever() {
  for (;;) {
    if (document.visibilityState === "visible") await poll();
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}
pollForever();
