// An engine in the world that computes with the arenas of a replica (P14): it reads live bytes piece by piece under the run lock, and
// must never see a mix. It stands in for the engine's side of the link; the worker's side is the program's own.

import { type RankKey, rankKey } from "../../orchestrator/contract/jobs.js";
import type { LinkId } from "../../worker/engines/leases.js";
import type { LinkServer, LinkServerOptions } from "../../worker/engines/link-server.js";
import type { EngineMessage, Hello, WorkerMessage } from "../../worker/engines/messages.js";
import type { AttachedEngine, Caller, Door } from "./doors.js";
import { type Disk, releaseLocks, tryLock, unlock } from "./memory-core.js";
import { hostOf, type Sim } from "./sim.js";
import type { Process } from "./world.js";

const LOCK = "running.lock";
const LIVE = "live.safetensors";
const LOOK_EVERY_MS = 20;
const CALL_AGAIN_MS = 500;
/** Loading, profiling, capturing graphs: nobody can stop it then. */
const STARTS_WITHIN_MS = 3_000;
/** An engine that is not let in by all its ranks ends: else a commit that these ranks need would wait for it, and it for the commit. */
const WAITS_MS = 30_000;

/** A worker's end of all links. They end with it, and with the engine. */
export function openDoor(
  sim: Sim,
  key: RankKey,
  worker: Process,
  handlers: Pick<LinkServerOptions, "onMessage" | "onEnd">,
): LinkServer {
  const door: Door = { worker, ...handlers, callers: new Map(), links: 0 };
  sim.doors.set(key, door);
  worker.onDeath.push(() => {
    if (sim.doors.get(key) === door) sim.doors.delete(key);
    for (const { engine, lost } of door.callers.values()) void sim.world.event(engine, lost);
  });
  return {
    send(link, message) {
      const caller = door.callers.get(link);
      caller?.coming.push(message);
      if (caller !== undefined) void sim.world.event(caller.engine, () => deliverTo(caller));
    },
    end: (link) => hangUp(sim, door, link),
    close: () => {},
  };
}

function deliverTo({ coming, hear }: Caller): void {
  const message = coming.shift();
  if (message !== undefined) hear(message);
}

function hangUp(sim: Sim, door: Door, link: LinkId): void {
  const caller = door.callers.get(link);
  door.callers.delete(link);
  if (caller !== undefined) void sim.world.event(caller.engine, caller.lost);
}

interface Line {
  send(message: EngineMessage): void;
}

/** Null where nobody answers. */
function call(sim: Sim, key: RankKey, hello: Hello, caller: Omit<Caller, "coming">): Line | null {
  const door = sim.doors.get(key);
  if (door === undefined || !door.worker.alive) return null;
  door.links += 1;
  const link = door.links;
  door.callers.set(link, { ...caller, coming: [] });
  // In the order in which it was sent; the end comes last.
  const going: (EngineMessage | null)[] = [];
  const hearNext = () => {
    const message = going.shift() ?? null;
    if (message === null) door.onEnd(link);
    else door.onMessage(link, message);
  };
  const send = (message: EngineMessage | null) => {
    going.push(message);
    void sim.world.event(door.worker, hearNext);
  };
  caller.engine.onDeath.push(() => {
    if (door.callers.delete(link)) send(null);
  });
  send({ kind: "hello", hello });
  return { send };
}

/** What it has of one rank. */
interface Seat {
  key: RankKey;
  disk: Disk;
  lines: Record<Hello["role"], Line | null>;
  isWelcome: boolean;
  /** The epoch for which it is to stand still. */
  stop: number | null;
  mapped: Uint32Array | null;
}

export function startAttachedEngine(sim: Sim, replica: number, life: number): AttachedEngine {
  const { world, random } = sim;
  const process = world.spawn(`engine ${replica} #${life}`);
  const engine: AttachedEngine = { process, replica, isRunning: false, isStarting: false };
  const seats = Array.from({ length: sim.options.tensorParallelSize }, (_, rank) => seatOf(sim, replica, rank));
  const sleep = (ms: number) => world.event(process, () => {}, { notBefore: world.now + ms });
  let isReady = false;
  let isInStep = false;

  function open(seat: Seat, role: Hello["role"]): void {
    const hello: Hello = {
      ...{
        hello: 1,
        engine: `${replica}.${life}`,
        role,
        name: "engine",
        version: "0",
        pid: life,
        host: "h",
        url: null,
      },
      ...{ world: seats.length, rank: seats.indexOf(seat), data_parallel_rank: 0 },
      state: isReady ? "ready" : "starting",
    };
    seat.lines[role] = call(sim, seat.key, hello, {
      engine: process,
      hear: (message) => hear(seat, message),
      lost() {
        seat.lines[role] = null;
        if (role === "core") seat.stop = null;
      },
    });
    if (role === "core") seat.lines.core?.send({ kind: "ready" });
  }

  function hear(seat: Seat, message: WorkerMessage): void {
    if ("welcome" in message) seat.isWelcome = true;
    if ("refused" in message) world.kill(process);
    if ("go" in message) seat.stop = null;
    if (!("stop" in message)) return;
    seat.stop = message.stop;
    if (!isInStep) standStill();
  }

  function standStill(): void {
    for (const { disk } of seats) unlock(disk, LOCK, process);
    engine.isRunning = false;
  }

  /** All locks, and then all pages show one epoch. */
  function goOn(): void {
    const epochs = seats.map((seat) =>
      tryLock(seat.disk, LOCK, { owner: process, kind: "shared" }) ? look(seat) : null,
    );
    engine.isRunning = !epochs.includes(null) && new Set(epochs).size === 1;
    if (!engine.isRunning) standStill();
  }

  function look(seat: Seat): number | null {
    const page = seat.disk.pages.get("control");
    const live = seat.disk.arenas.get(LIVE) ?? null;
    if (page === undefined || page.state !== "live" || page.generation % 2 === 1) return null;
    seat.mapped ??= live;
    if (seat.mapped === live) return page.epoch;
    world.tell(`${process.name} finds another arena at rank ${seat.key}`);
    world.kill(process);
    return null;
  }

  /** Reads every rank's bytes, each at moments of its own. */
  async function step(): Promise<void> {
    isInStep = true;
    const seen = new Set<number>();
    for (const { mapped } of seats) {
      const [first, rest] = [mapped?.subarray(0, 1) ?? [], mapped?.subarray(1) ?? []];
      for (const piece of [first, rest]) {
        await sleep(random.between(0, 30));
        for (const number of piece) seen.add(number);
      }
    }
    isInStep = false;
    if (seen.size > 1) sim.violations.push(`(h) ${process.name} has computed with checkpoints ${[...seen].join(", ")}`);
    if (seats.some(({ stop }) => stop !== null)) standStill();
  }

  async function live(): Promise<void> {
    world.every(process, CALL_AGAIN_MS, () => {
      for (const seat of seats) {
        if (seat.lines.rank === null) open(seat, "rank");
        if (isReady && seat.lines.core === null) open(seat, "core");
      }
    });
    const waitsUntil = world.now + WAITS_MS;
    while (!seats.every(({ isWelcome }) => isWelcome)) {
      if (world.now >= waitsUntil) return world.kill(process);
      await sleep(LOOK_EVERY_MS);
    }
    engine.isStarting = true;
    const readyAt = world.now + random.between(0, STARTS_WITHIN_MS);
    for (;;) {
      if (!isReady && world.now >= readyAt && engine.isRunning) {
        isReady = true;
        for (const seat of seats) open(seat, "core");
        engine.isStarting = false;
      }
      if (engine.isRunning) {
        await step();
        await sleep(random.between(0, 200));
        continue;
      }
      await sleep(LOOK_EVERY_MS);
      if (seats.every(({ stop }) => stop === null)) goOn();
    }
  }

  process.onDeath.push(() => {
    engine.isRunning = false;
    engine.isStarting = false;
    for (const { disk } of seats) releaseLocks(disk, process);
  });
  live().catch((error: unknown) => sim.violations.push(`the engine itself failed: ${error}`));
  return engine;
}

function seatOf(sim: Sim, replica: number, rank: number): Seat {
  const key = rankKey(replica, rank);
  const lines = { rank: null, core: null };
  return { key, disk: hostOf(sim, key), lines, isWelcome: false, stop: null, mapped: null };
}
