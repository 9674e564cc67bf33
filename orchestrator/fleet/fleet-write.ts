// What a transition comes to, as one value to be written: the new state, the records it changed, their events, the messages
// to whoever listens. Pure; the fleet store writes it in one script, if nobody was faster.

import type { FleetMessage } from "../contract/fleet-message.js";
import { CHANNELS, KEYS, type RankKey } from "../contract/jobs.js";
import { advance, nextStep } from "./advance.js";
import { hookDue } from "./engine-transitions.js";
import { heldBy } from "./reload-transitions.js";
import { activeReload, type Context, expectedRanks, type FleetState, isTerminal, type ReloadRecord } from "./state.js";

/** What a transition may read and write beside the fleet's state, in the same compare-and-set. */
export interface Beside {
  /** Values of the keys named to `transact`. */
  readonly stored: readonly (string | null)[];
  set: { key: string; value: string }[];
  reloadIndex: { id: string; at: number }[];
  reloadFields: { id: string; field: string; value: string }[];
  /** A lease that begins with the write; what follows from the transition counts it as valid. */
  lease: LeaseGrant | null;
}

export interface LeaseGrant {
  rank: RankKey;
  incarnation: string;
  ttlMs: number;
}

export type Transition<Result> = (draft: FleetState, context: Context, beside: Beside) => Result;

/** Lists are empty rather than absent; Lua reads it as JSON. */
export interface FleetWrite {
  fleet: string;
  /** What must still stand for the write to take place: the version, the life of Redis, the leases. */
  version: number;
  redisRunId: string;
  leases: { rank: string; incarnation: string }[];
  /** Written with the rest; at most one. */
  grant: LeaseGrant[];
  /** The new FleetState, JSON. */
  state: string;
  /** The same with no reload but the active one. */
  outline: string;
  reloadIndex: { id: string; at: number }[];
  set: { key: string; value: string }[];
  fields: { key: string; field: string; value: string }[];
  events: { key: string; name: string; payload: string }[];
  messages: { channel: string; text: string }[];
}

export interface Applied<Result> {
  result: Result;
  after: FleetState;
  /** null: nothing has changed. */
  write: FleetWrite | null;
  /** Reloads that entered another state. */
  entered: ReloadRecord[];
}

/** Throws what the transition throws. */
export function applyTransition<Result>(
  before: FleetState,
  context: Context,
  transition: Transition<Result>,
  stored: readonly (string | null)[],
): Applied<Result> {
  const text = JSON.stringify(before);
  const after = JSON.parse(text) as FleetState;
  const beside: Beside = { stored, set: [], reloadIndex: [], reloadFields: [], lease: null };
  const result = transition(after, context, beside);
  advance(after, withLease(context, beside.lease));
  if (JSON.stringify(after) === text && beside.lease === null) return { result, after, write: null, entered: [] };
  after.version += 1;
  return { result, after, ...describeWrite(before, after, context, beside) };
}

function withLease(context: Context, lease: LeaseGrant | null): Context {
  if (lease === null) return context;
  const leaseValid: Context["leaseValid"] = (rank, incarnation) =>
    rank === lease.rank ? incarnation === lease.incarnation : context.leaseValid(rank, incarnation);
  return { ...context, leaseValid };
}

/** The state without ended reloads, every changed record, an event for every new warning and every state entered. */
function describeWrite(
  before: FleetState,
  after: FleetState,
  context: Context,
  beside: Beside,
): { write: FleetWrite; entered: ReloadRecord[] } {
  const changed = Object.values(after.reloads).filter(
    (record) => JSON.stringify(record) !== JSON.stringify(before.reloads[record.id]),
  );
  const entered = changed.filter((record) => record.state !== before.reloads[record.id]?.state);
  const fields = changed.map((record) => ({
    key: KEYS.reload(record.id),
    field: "record",
    value: JSON.stringify(record),
  }));
  for (const { id, field, value } of beside.reloadFields) fields.push({ key: KEYS.reload(id), field, value });
  const unfinished = Object.entries(after.reloads).filter(([, record]) => !isTerminal(record));
  const write: FleetWrite = {
    fleet: after.fleet,
    version: before.version,
    redisRunId: context.redisRunId,
    state: JSON.stringify({ ...after, reloads: Object.fromEntries(unfinished) }),
    outline: JSON.stringify(outlineOf(after)),
    leases: reliedOnLeases(after, entered).filter(({ rank }) => rank !== beside.lease?.rank),
    grant: beside.lease === null ? [] : [beside.lease],
    reloadIndex: beside.reloadIndex,
    set: beside.set,
    fields,
    events: [...changed.flatMap((record) => warningEvents(record, before)), ...entered.map(stateEvent)],
    messages: describeMessages(after, changed),
  };
  return { write, entered };
}

/** A fleet may have 200 reloads in its queue; whether it is routable follows from the active one. */
export function outlineOf(state: FleetState): FleetState {
  const active = activeReload(state);
  return { ...state, reloads: active === null ? {} : { [active.id]: active } };
}

function describeMessages(after: FleetState, changed: ReloadRecord[]): { channel: string; text: string }[] {
  const { fleet, version, active } = after;
  const record = activeReload(after);
  const swapTo = record?.state === "committing" && record.times.signalled !== null ? heldBy(record) : null;
  const waits = nextStep(after) !== null || hookDue(after) !== null;
  const message: FleetMessage = { fleet, version, waits, active, swapTo };
  return [
    ...changed.map(({ id }) => ({ channel: CHANNELS.reload, text: id })),
    ...changed.filter(isTerminal).map(({ id }) => ({ channel: CHANNELS.ended, text: id })),
    { channel: CHANNELS.fleet, text: JSON.stringify(message) },
  ];
}

/** The decision and the publishing hold only if every rank's lease is valid in the very step that writes them (P3, P5). */
function reliedOnLeases(after: FleetState, entered: ReloadRecord[]): { rank: string; incarnation: string }[] {
  if (!entered.some((record) => record.state === "committing" || record.state === "committed")) return [];
  return expectedRanks(after).map((rank) => ({ rank, incarnation: after.ranks[rank]?.incarnation ?? "" }));
}

type Event = FleetWrite["events"][number];

function stateEvent({ id, state, epoch, error }: ReloadRecord): Event {
  return { key: KEYS.events(id), name: "state", payload: JSON.stringify({ state, epoch, error }) };
}

/** Warnings are only ever added to a record. */
function warningEvents({ id, warnings }: ReloadRecord, before: FleetState): Event[] {
  const known = before.reloads[id]?.warnings.length ?? 0;
  return warnings
    .slice(known)
    .map((warning) => ({ key: KEYS.events(id), name: "warning", payload: JSON.stringify(warning) }));
}
