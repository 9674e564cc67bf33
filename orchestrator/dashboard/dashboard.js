// The dashboard: reads fleets and reloads every second, follows what runs by its event stream, and draws what the store
// knows. Asks for the bearer token when the API wants one, and keeps it for this tab only.

import { fleetCards } from "./draw-fleets.js";
import { fleetOptions, listRows } from "./draw-list.js";
import { reloadPage } from "./draw-page.js";
import { reloadCard } from "./draw-reload.js";
import { followReload } from "./events.js";
import { listPath, openList, PAGE_SIZE, shownReloads, takeNewest, takeOlder } from "./list.js";
import { line, reloadOfHash } from "./nodes.js";
import { patchChildren } from "./patch.js";
import {
  forget,
  isEnded,
  markOf,
  openStore,
  shownCards,
  shownFleets,
  takeEvent,
  takeFleets,
  takeNewestPage,
  takePage,
  takeRecord,
  takeTensors,
} from "./store.js";
import { news, standing, titleOf } from "./words.js";

const POLL_MS = 1000;
/** Nobody looks, but the title in the tab is to be true. */
const HIDDEN_POLL_MS = 10_000;
/** A record is read again at most this often while its events arrive; it has the layers, which events do not. */
const RECORD_MS = 300;
const DRAW_MS = 50;
/** A browser opens six connections to one server, and the rest of the page needs some. */
const MAX_STREAMS = 3;
/** A push of more tensors is shown by its layers: the list of what arrived would be megabytes at each poll. */
const MAX_TENSORS = 5000;
const TOKEN_KEY = "layercast-token";

const at = (id) => document.getElementById(id);
const store = openStore();
let list = openList();
/** By id, while or after a reload's events are followed: { isOpen, readAt }. */
const streams = new Map();
/** Pushes whose list of tensors is too long or no longer to be had. */
const withoutTensors = new Set();
let pageId = reloadOfHash(location.hash);
let pageProblem = null;

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

const pathOf = (id) => `/v1/reloads/${encodeURIComponent(id)}`;

/** Fleets first: what is known of reloads is then at least as new, and a fleet can be drawn as of its reloads. */
async function refresh() {
  try {
    const mark = markOf(store);
    const { fleets } = await read("/v1/fleets");
    const newest = await read(`/v1/reloads?view=summary&limit=${PAGE_SIZE}`);
    takeFleets(store, fleets, mark);
    takeNewestPage(store, newest.reloads);
    const isWhole = takeNewest(list, newest);
    const records = await Promise.all(fullIds(fleets).map(readFull));
    for (const record of records) if (record !== null) takeRecord(store, record, true);
    if (!isWhole) await showList(list.filter);
    forgetOld();
    followSome();
    showConnection("live", "good");
    at("token-form").hidden = true;
  } catch (error) {
    showFailure(error);
  }
  drawSoon();
}

/** What is shown with its ranks: what runs, what ran last, and the page's own. */
function fullIds(fleets) {
  const cards = shownCards(store).filter(({ reload, isFull }) => !isFull || !isEnded(reload.state));
  const running = fleets.map(({ active_reload_id }) => active_reload_id).filter((id) => id !== null);
  const page = store.entries.get(pageId);
  const isPageDone = pageId === null || (page?.isFull && isEnded(page.reload.state));
  return [...new Set([...running, ...cards.map(({ reload }) => reload.reload_id), ...(isPageDone ? [] : [pageId])])];
}

/** null: not there. The page's own reload says why. */
async function readFull(id) {
  try {
    const record = await read(pathOf(id));
    if (record.push !== null && !isEnded(record.state)) await readTensors(id);
    return record;
  } catch (error) {
    if (error.problem?.status !== 404) throw error;
    if (id === pageId) pageProblem = error.message;
    return null;
  }
}

async function readTensors(id) {
  if (withoutTensors.has(id)) return;
  try {
    const { tensors } = await read(`${pathOf(id)}/tensors`);
    if (tensors.length > MAX_TENSORS) withoutTensors.add(id);
    else takeTensors(store, id, tensors);
  } catch (error) {
    // Until it is planned there is no list.
    if (error.problem === undefined) throw error;
  }
}

function forgetOld() {
  forget(store, (id, { reload, ran }) => id === pageId || ran || !isEnded(reload.state) || list.ids.has(id));
}

function followSome() {
  const cards = shownCards(store).map(({ reload }) => reload);
  const ids = [pageId, ...cards.filter(({ state }) => !isEnded(state)).map(({ reload_id }) => reload_id)];
  for (const id of ids) {
    const isFree = [...streams.values()].filter(({ isOpen }) => isOpen).length < MAX_STREAMS;
    if (id !== null && isFree && store.entries.has(id) && !streams.has(id)) follow(id);
  }
}

function follow(id) {
  const stream = { isOpen: true, readAt: Date.now() };
  streams.set(id, stream);
  const onEvent = (event) => {
    const isNew = takeEvent(store, id, event);
    drawSoon();
    if (isNew) refreshSoon();
    else if (Date.now() - stream.readAt > RECORD_MS && !isEnded(store.entries.get(id)?.reload.state))
      readAgain(id, stream);
  };
  followReload(id, call, onEvent, new AbortController().signal).then(() => {
    stream.isOpen = false;
    refreshSoon();
  });
}

function readAgain(id, stream) {
  stream.readAt = Date.now();
  readFull(id).then((record) => {
    if (record !== null) takeRecord(store, record, true);
    drawSoon();
  }, showFailure);
}

/** One at a time; asked for while one is under way, one more follows it. */
let refreshing = null;
let isAskedAgain = false;
function refreshSoon() {
  if (refreshing !== null) {
    isAskedAgain = true;
    return refreshing;
  }
  refreshing = refresh().finally(() => {
    refreshing = null;
    if (isAskedAgain) refreshSoon();
    isAskedAgain = false;
  });
  return refreshing;
}

async function showList(filter) {
  list = openList(filter);
  await showOlder();
}

async function showOlder() {
  const asked = list;
  const page = await read(listPath(asked));
  takePage(store, page.reloads);
  takeOlder(asked, page);
  drawSoon();
}

let willDraw = false;
function drawSoon() {
  if (willDraw) return;
  willDraw = true;
  // Not by animation frames, which a hidden tab does not have.
  setTimeout(() => {
    willDraw = false;
    draw();
  }, DRAW_MS);
}

let said = new Map();
function draw() {
  document.title = titleOf(store, pageId);
  at("overview").hidden = pageId !== null;
  at("page").hidden = pageId === null;
  if (pageId === null) drawOverview();
  else patchChildren(at("page"), reloadPage(pageId, fullEntry(pageId), pageProblem));
  const now = standing(store);
  const sentences = news(said, now);
  if (sentences.length > 0) at("news").textContent = sentences.join(" ");
  said = now;
}

function fullEntry(id) {
  const entry = store.entries.get(id);
  return entry?.isFull ? entry : null;
}

function drawOverview() {
  const fleets = shownFleets(store);
  patchChildren(at("fleets"), fleetCards(fleets));
  patchChildren(at("running"), shownCards(store).map(reloadCard));
  const shown = shownReloads(list, store.entries);
  patchChildren(at("list"), listRows(shown));
  const isFiltered = list.filter.state !== "" || list.filter.fleet !== "";
  const empty = isFiltered ? "No reload is like that." : "No reload has been submitted yet.";
  patchChildren(at("list-empty"), shown.length > 0 || store.clock === 0 ? [] : [line(empty, "quiet")]);
  patchChildren(at("filter-fleet"), fleetOptions(fleets, list.filter.fleet));
  at("older").hidden = list.cursor === null;
}

function showConnection(text, className) {
  if (at("connection").textContent !== text) at("connection").textContent = text;
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

async function copy(button) {
  const text = button.dataset.copy;
  // Only a page from this machine, or over TLS, may write the clipboard; elsewhere the text is selected to be copied by key.
  const isCopied = await (navigator.clipboard?.writeText(text) ?? Promise.reject()).then(
    () => true,
    () => false,
  );
  if (!isCopied) getSelection().selectAllChildren(button.parentElement.querySelector("code"));
  at("news").textContent = isCopied ? `Copied ${text}.` : `Selected ${text}.`;
}

at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN_KEY, at("token").value.trim());
  at("token").value = "";
  refreshSoon();
});
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy]");
  if (button !== null) copy(button);
});
at("filter").addEventListener("change", () => {
  showList({ state: at("filter-state").value, fleet: at("filter-fleet").value }).catch(showFailure);
});
at("older").addEventListener("click", () => showOlder().catch(showFailure));
addEventListener("hashchange", () => {
  pageId = reloadOfHash(location.hash);
  pageProblem = null;
  draw();
  scrollTo(0, 0);
  at("page").querySelector("h1")?.focus({ preventScroll: true });
  refreshSoon();
});
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && refreshSoon());

async function pollForever() {
  for (;;) {
    await refreshSoon();
    const ms = document.visibilityState === "visible" ? POLL_MS : HIDDEN_POLL_MS;
    await new Promise((resolve) => setTimeout(resolve, ms));
  }
}
pollForever();
