// The newest that is known of fleets and reloads, whether an event or an answer told it; all that is drawn is drawn from here,
// so that a reload has one state on the page. Answers may be older than events that arrived meanwhile: what a reload or a rank
// can only go forward in never goes back. Pure.

const ORDER = ["queued", "planning", "loading", "finalizing", "committing"];
const stepOf = (state) => (ORDER.includes(state) ? ORDER.indexOf(state) : ORDER.length);
export const isEnded = (state) => stepOf(state) === ORDER.length;
const isRunning = ({ state }) => state !== "queued" && !isEnded(state);

const MAX_LOG = 300;

/**
 * `clock` counts what was learned; `fleetsAt` is its value when the fleets that are known were asked for; `since` is when the
 * newest reload was submitted that was there at first.
 */
export function openStore() {
  return { clock: 0, fleets: [], fleetsAt: 0, since: null, entries: new Map() };
}

/** The newest page of reloads, without their ranks. */
export function takeNewestPage(store, reloads) {
  store.since ??= reloads[0]?.created_at ?? "";
  takePage(store, reloads);
}

export function takePage(store, reloads) {
  for (const reload of reloads) takeRecord(store, reload, false);
}

/** Before a request is sent: its answer knows all that was learned up to here. */
export const markOf = (store) => store.clock;

export function takeFleets(store, fleets, mark) {
  if (mark < store.fleetsAt) return;
  store.fleets = fleets;
  store.fleetsAt = mark;
}

/** `isFull`: with ranks, layers and push, which a summary leaves out. */
export function takeRecord(store, record, isFull) {
  const known = store.entries.get(record.reload_id);
  if (known === undefined) {
    const seen = { wasOpen: !isEnded(record.state), ran: false, endedAt: null };
    const entry = { reload: record, isFull, ...seen, log: [], sent: null };
    store.entries.set(record.reload_id, entry);
    return learned(store, entry);
  }
  known.reload = merged(known, record, isFull);
  known.isFull ||= isFull;
  return learned(store, known);
}

function learned(store, entry) {
  store.clock += 1;
  // One that was submitted since, and is over before it was seen to run, ran all the same.
  const isNew = store.since !== null && entry.reload.created_at > store.since && entry.reload.state !== "queued";
  entry.ran ||= isRunning(entry.reload) || isNew;
  if (isEnded(entry.reload.state)) entry.endedAt ??= store.clock;
  return entry;
}

function merged({ reload: known, isFull: isKnownFull }, read, isFull) {
  if (isEnded(read.state) && isFull) return read;
  const isOlder = stepOf(read.state) < stepOf(known.state);
  const { ranks, layers, push, progress } = known;
  const newest = isOlder ? known : read;
  if (!isFull) return { ...newest, ranks, layers, push, progress };
  const details = isOlder && isKnownFull ? { layers, push, progress } : pick(read);
  return { ...newest, ...details, ranks: mergedRanks(ranks, read.ranks) };
}

const pick = ({ layers, push, progress }) => ({ layers, push, progress });

const nameOf = ({ replica, rank }) => `${replica}/${rank}`;

function mergedRanks(known, read) {
  const byName = new Map(known.map((rank) => [nameOf(rank), rank]));
  for (const rank of read) byName.set(nameOf(rank), newerRank(byName.get(nameOf(rank)), rank));
  return [...byName.values()].sort((one, other) => one.replica - other.replica || one.rank - other.rank);
}

const RANK_STATES = ["waiting", "loading", "finalizing", "prepared", "swapped", "lost"];
const farOf = (rank) => [
  RANK_STATES.indexOf(rank.state),
  ...[rank.layers_done, rank.attempts, rank.bytes_read, rank.bytes_written, rank.push?.buckets_taken ?? 0],
];

/** All that a process counts only grows, so what is behind in anything is older. */
function newerRank(known, read) {
  if (known === undefined || known.incarnation !== read.incarnation) return read;
  const far = farOf(known);
  return farOf(read).some((value, index) => value < far[index]) ? known : read;
}

/** Answers whether the reload's state is another now. */
export function takeEvent(store, id, event) {
  const entry = store.entries.get(id);
  if (entry === undefined) return false;
  const { name, payload } = event;
  const { reload } = entry;
  if (["state", "retry", "warning"].includes(name) || (name === "bucket" && payload.state === "wanted"))
    entry.log = [...entry.log, event].slice(-MAX_LOG);
  if (name === "progress") entry.reload = { ...reload, ranks: mergedRanks(reload.ranks, [payload]) };
  const isNew = name === "state" && stepOf(payload.state) > stepOf(reload.state);
  if (isNew) entry.reload = { ...reload, state: payload.state, error: payload.error ?? null, pending_reason: null };
  learned(store, entry);
  return isNew;
}

/** What trainers have sent of a push, from the list of its tensors. */
export function takeTensors(store, id, tensors) {
  const entry = store.entries.get(id);
  if (entry === undefined) return;
  const rows = tensors.map(({ shape, rows_received: got }) => ({ got, all: shape.length === 0 ? 1 : shape[0] }));
  const sizes = tensors.map(({ shape }) => shape.reduce((product, size) => product * size, 1));
  const elements = rows.reduce((sum, { got, all }, index) => sum + (all === 0 ? 0 : (sizes[index] * got) / all), 0);
  entry.sent = {
    elements: Math.round(elements),
    of: sizes.reduce((sum, size) => sum + size, 0),
    tensors: rows.filter(({ got, all }) => got >= all).length,
    ofTensors: tensors.length,
  };
}

/** The fleets as of their newest committed reloads: a reload that is known to have ended is ended in its fleet too. */
export function shownFleets(store) {
  const isNews = ({ wasOpen, ran, endedAt }) => (wasOpen || ran) && endedAt !== null && endedAt > store.fleetsAt;
  const ended = [...store.entries.values()].filter(isNews);
  return store.fleets.map((fleet) => {
    const own = ended.filter(({ reload }) => reload.fleet === fleet.fleet).map(({ reload }) => reload);
    const isOver = own.some((reload) => reload.reload_id === fleet.active_reload_id);
    const queued = fleet.queued_reload_ids.filter((id) => !own.some((reload) => reload.reload_id === id));
    const shown = { ...fleet, queued_reload_ids: queued, active_reload_id: isOver ? null : fleet.active_reload_id };
    const committed = own.filter(({ state }) => state === "committed").sort((a, b) => b.epoch - a.epoch)[0];
    return committed === undefined ? shown : withCommitted(shown, committed);
  });
}

function withCommitted(fleet, { epoch, weight_version }) {
  const isBehind = (rank) => rank.alive && !rank.drained && (rank.epoch === null || rank.epoch < epoch);
  if (fleet.ranks.some((rank) => rank.epoch !== null && rank.epoch > epoch)) return fleet;
  const ranks = fleet.ranks.map((rank) => (isBehind(rank) ? { ...rank, epoch, weight_version } : rank));
  return { ...fleet, weight_version, ranks };
}

/** By fleet: what runs now, or ran last while this page was open. */
export function shownCards(store) {
  const cards = new Map();
  for (const entry of [...store.entries.values()].sort((a, b) => byTime(b.reload, a.reload))) {
    const { fleet, state } = entry.reload;
    const before = cards.get(fleet);
    if (state === "queued" || state === "superseded") continue;
    if (before === undefined || !isRunning(before.reload)) cards.set(fleet, entry);
  }
  return [...cards.values()].filter(({ ran }) => ran);
}

/** The newest first. */
export function byTime(one, other) {
  return other.created_at.localeCompare(one.created_at) || other.reload_id.localeCompare(one.reload_id);
}

export function forget(store, isWanted) {
  for (const [id, entry] of store.entries) if (!isWanted(id, entry)) store.entries.delete(id);
}
