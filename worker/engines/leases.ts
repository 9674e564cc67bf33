// The engines attached to a rank, as values and pure transitions: who has said hello, who was let in, who has gone. An engine has
// two links with a rank's worker: of its process that computes with the rank's arena, and of its core, which makes it stand still.

import { countOf } from "../../orchestrator/contract/count-of.js";
import type { EngineLease, EngineReport, EngineStopTimes } from "../../orchestrator/contract/engines.js";
import { LayercastError } from "../../orchestrator/contract/errors.js";
import { type Hello, LINK_VERSION, type Running } from "./messages.js";

export type LinkId = number;
type Role = Hello["role"];

interface EngineLink {
  id: LinkId;
  pid: number;
}

export interface AttachedEngine {
  id: string;
  name: string;
  version: string;
  host: string;
  url: string | null;
  links: Record<Role, EngineLink | null>;
  /** Whether it had such a link: one that it had and has not is its end. */
  had: Record<Role, boolean>;
  /** The model is loaded, the core can stop it. */
  isReady: boolean;
  /** It may use the arena: the fleet's document says so, or it did so before this worker began. */
  isAdmitted: boolean;
  /** Since when a link of it is missing. */
  goneSince: number | null;
  lastStop: EngineStopTimes | null;
  trouble: string | null;
  /** Known by what this rank's worker before has reported: its links must be back by then. */
  expected: { state: "starting" | "ready"; pid: number | null; until: number } | null;
}

export type Engines = readonly AttachedEngine[];

/** An engine opens its links again every 0.5 s, when its own work lets it. */
const COMES_BACK_MS = 5_000;
/** People shall see that an engine has gone. */
const SHOWN_GONE_MS = 60_000;

/** What an engine must say of itself to fit this rank. Throws `invalid_request`, for the engine to show. */
export function requireFitting(
  engines: Engines,
  { hello, role, world, rank, engine, pid }: Hello,
  place: { rank: number; tensorParallelSize: number },
): void {
  if (hello !== LINK_VERSION)
    throw refusal(
      `The engine speaks version ${hello} of the link, this worker version ${LINK_VERSION}: install the same release on both sides.`,
    );
  if (world !== place.tensorParallelSize)
    throw refusal(
      `The engine has ${countOf(world, "rank")} and each of the fleet's replicas ${place.tensorParallelSize}: start the engine with --tensor-parallel-size ${place.tensorParallelSize}, or the fleet with --tp ${world}.`,
    );
  if (role === "rank" && rank !== place.rank)
    throw refusal(
      `Rank ${rank} of the engine has called rank ${place.rank} of the fleet: give each rank its own directory.`,
    );
  const other = engines.find(({ id }) => id === engine)?.links[role] ?? null;
  if (other !== null && other.pid !== pid)
    throw refusal(
      `Process ${other.pid} is attached as ${engine} (${role}), and process ${pid} has the same id: engines need different ones.`,
    );
}

function refusal(message: string): LayercastError {
  return new LayercastError("invalid_request", message);
}

/** A process of an engine has said hello. One that says `ready` computes already, so there is nothing to wait for. */
export function connected(engines: Engines, link: LinkId, hello: Hello): Engines {
  const { engine: id, role, name, version, host, url, pid } = hello;
  const before = engines.find((one) => one.id === id) ?? newEngine(id);
  const links = { ...before.links, [role]: { id: link, pid } };
  const engine: AttachedEngine = {
    ...before,
    ...{ name, version, host, links },
    url: url ?? before.url,
    had: { ...before.had, [role]: true },
    isReady: before.isReady || (role === "core" && hello.state === "ready"),
    isAdmitted: before.isAdmitted || hello.state === "ready",
  };
  return [...engines.filter((one) => one.id !== id), settled(engine)];
}

function newEngine(id: string): AttachedEngine {
  return {
    ...{ id, name: "", version: "", host: "", url: null },
    links: { rank: null, core: null },
    had: { rank: false, core: false },
    isReady: false,
    isAdmitted: false,
    goneSince: null,
    lastStop: null,
    trouble: null,
    expected: null,
  };
}

/** What it was expected for has come. */
function settled(engine: AttachedEngine): AttachedEngine {
  const isWhole = !isLost(engine);
  const isBack = engine.links.rank !== null && (engine.links.core !== null || engine.expected?.state === "starting");
  return { ...engine, goneSince: isWhole ? null : engine.goneSince, expected: isBack ? null : engine.expected };
}

function isLost({ links, had }: AttachedEngine): boolean {
  return (had.rank && links.rank === null) || (had.core && links.core === null);
}

/** The link of a process is over, and so, as far as is known, is that process. */
export function disconnected(engines: Engines, link: LinkId, now: number): Engines {
  return change(engines, link, (engine, role) => ({
    ...engine,
    links: { ...engine.links, [role]: null },
    isReady: role === "core" ? false : engine.isReady,
    isAdmitted: false,
    goneSince: engine.goneSince ?? now,
    trouble: null,
  }));
}

export function becameReady(engines: Engines, link: LinkId): Engines {
  return change(engines, link, (engine, role) => (role === "core" ? { ...engine, isReady: true } : engine));
}

export function ranAgain(engines: Engines, link: LinkId, { running, ...times }: Running): Engines {
  const lastStop = {
    epoch: running,
    weightVersion: times.weight_version,
    stopMs: times.stop_ms,
    stillMs: times.still_ms,
  };
  return change(engines, link, (engine) => ({ ...engine, lastStop, trouble: null }));
}

export function troubled(engines: Engines, link: LinkId, trouble: string | null): Engines {
  return change(engines, link, (engine) => ({ ...engine, trouble }));
}

export function admitted(engines: Engines, ids: readonly string[]): Engines {
  return engines.map((engine) =>
    ids.includes(engine.id) && !isLost(engine) ? { ...engine, isAdmitted: true } : engine,
  );
}

/** What the worker before has told the fleet, as far as it has not called yet. */
export function inherited(engines: Engines, leases: readonly EngineLease[], now: number): Engines {
  const missing = leases.filter(({ id, state }) => {
    const isAttached = state === "starting" || state === "ready";
    return isAttached && engines.every((engine) => engine.id !== id);
  });
  const expected = missing.map(({ since, state, pid, ...lease }) => ({
    ...newEngine(lease.id),
    ...lease,
    isAdmitted: true,
    isReady: state === "ready",
    expected: { state: state as "starting" | "ready", pid, until: now + COMES_BACK_MS },
  }));
  return [...engines, ...expected];
}

/** Who has not come back is gone; who has been gone for long is forgotten. */
export function aged(engines: Engines, now: number): Engines {
  return engines
    .map((engine) => {
      if (engine.expected === null || now < engine.expected.until) return engine;
      return { ...engine, expected: null, had: { rank: true, core: engine.expected.state === "ready" } };
    })
    .map((engine) =>
      isLost(engine) && engine.goneSince === null ? { ...engine, isAdmitted: false, goneSince: now } : engine,
    )
    .filter(({ goneSince }) => goneSince === null || now - goneSince < SHOWN_GONE_MS);
}

export function stateOf(engine: AttachedEngine): EngineReport["state"] {
  if (engine.expected !== null) return engine.expected.state;
  if (isLost(engine)) return "gone";
  if (!engine.isAdmitted) return "waiting";
  const { rank, core } = engine.links;
  return rank !== null && core !== null && engine.isReady ? "ready" : "starting";
}

/** As the fleet is told. */
export function reportsOf(engines: Engines): EngineReport[] {
  return engines
    .map((engine) => {
      const { id, name, version, host, url, lastStop, trouble } = engine;
      const pid = engine.links.rank?.pid ?? engine.expected?.pid ?? null;
      return { id, name, version, host, url, pid, lastStop, trouble, state: stateOf(engine) };
    })
    .sort((a, b) => (a.id < b.id ? -1 : 1));
}

export function coresOf(engines: Engines): LinkId[] {
  return engines.flatMap(({ links }) => (links.core === null ? [] : [links.core.id]));
}

export function engineOf(engines: Engines, link: LinkId): AttachedEngine | null {
  return engines.find(({ links }) => links.rank?.id === link || links.core?.id === link) ?? null;
}

/** For a sentence: the engines whose processes may hold the run lock. */
export function namesOf(engines: Engines): string[] {
  return engines
    .filter((engine) => Object.values(engine.links).some((link) => link !== null))
    .map(({ id, name, version, host, links }) => {
      const pids = new Set([links.rank, links.core].flatMap((link) => (link === null ? [] : [link.pid])));
      return `${name} ${version} ${id} (process ${[...pids].join(" and ")} on ${host})`;
    });
}

function change(engines: Engines, link: LinkId, to: (engine: AttachedEngine, role: Role) => AttachedEngine): Engines {
  return engines.map((engine) => {
    if (engine.links.rank?.id === link) return to(engine, "rank");
    return engine.links.core?.id === link ? to(engine, "core") : engine;
  });
}
