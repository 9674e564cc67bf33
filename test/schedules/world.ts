// A world in which the program's own code runs under a seeded order of events. Whatever a process asks of the outside (Redis,
// a queue, a native thread, a clock) waits here until the seed picks it; then its effect takes place at once, and the answer
// goes to the process, if that is still alive. Between two picks all code runs until it waits again.

import type { Random } from "./random.js";

/** A process of the world: while it is stopped nothing that it waits for comes, once it is dead nothing ever does. */
export interface Process {
  name: string;
  alive: boolean;
  /** Stands still until then (SIGSTOP, a long pause); 0: runs. */
  stoppedUntil: number;
  /** What is to be known when it dies. */
  onDeath: (() => void)[];
}

interface Pending {
  process: Process;
  notBefore: number;
  ready: (() => boolean) | null;
  run(): void;
}

export interface World {
  now: number;
  random: Random;
  /** What happened, when somebody wants to know. */
  story: string[] | null;
  /** Called after every event. */
  afterEvent: (() => void)[];
  /** When waiting things that `ready` asks about can change by themselves. */
  nextChange: (() => number)[];
}

export interface Scheduler extends World {
  spawn(name: string): Process;
  kill(process: Process): void;
  stop(process: Process, forMs: number): void;
  /** The effect takes place, and its result comes back, when the seed picks it. */
  event<Result>(
    process: Process,
    effect: () => Result,
    more?: { notBefore?: number; ready?: () => boolean },
  ): Promise<Result>;
  every(process: Process, ms: number, call: () => void): () => void;
  tell(line: string): void;
  /** Until `done`, or nothing can happen any more, or so many events have. Says which. */
  run(done: () => boolean, maxEvents: number): Promise<"done" | "idle" | "endless">;
}

const MAX_STEP_MS = 3;

export function createWorld(random: Random, story: string[] | null): Scheduler {
  let pending: Pending[] = [];
  const world: Scheduler = {
    now: 1_000,
    random,
    story,
    afterEvent: [],
    nextChange: [],
    spawn: (name) => ({ name, alive: true, stoppedUntil: 0, onDeath: [] }),
    kill(process) {
      if (!process.alive) return;
      process.alive = false;
      pending = pending.filter((one) => one.process !== process);
      for (const heed of process.onDeath) heed();
      world.tell(`${process.name} dies`);
    },
    stop(process, forMs) {
      process.stoppedUntil = world.now + forMs;
      world.tell(`${process.name} stands still for ${forMs} ms`);
    },
    event: (process, effect, { notBefore = 0, ready } = {}) =>
      new Promise((resolve, reject) => {
        if (!process.alive) return; // its code may still run to the end of a step: nobody hears of it
        const run = () => {
          try {
            resolve(effect());
          } catch (error) {
            reject(error);
          }
        };
        pending.push({ process, notBefore, ready: ready ?? null, run });
      }),
    every(process, ms, call) {
      let stopped = false;
      const again = async () => {
        while (!stopped) {
          await world.event(process, () => {}, { notBefore: world.now + ms });
          if (!stopped) call();
        }
      };
      void again();
      return () => {
        stopped = true;
      };
    },
    tell(line) {
      world.story?.push(`${String(world.now).padStart(7)} ${line}`);
    },
    async run(done, maxEvents) {
      for (let events = 0; events < maxEvents; events++) {
        if (done()) return "done";
        const next = pickOne();
        if (next === null) return "idle";
        world.now += random.between(0, MAX_STEP_MS);
        next.run();
        await settled();
        for (const look of world.afterEvent) look();
      }
      return "endless";
    },
  };

  const isEligible = ({ process, notBefore, ready }: Pending) =>
    notBefore <= world.now && process.stoppedUntil <= world.now && (ready === null || ready());

  /** When nothing can happen now, the clock goes on to when something can. */
  function pickOne(): Pending | null {
    for (;;) {
      const eligible = pending.filter(isEligible);
      if (eligible.length > 0) {
        const picked = random.pick(eligible);
        pending.splice(pending.indexOf(picked), 1);
        return picked;
      }
      const times = pending.flatMap(({ notBefore, process }) => [notBefore, process.stoppedUntil]);
      const later = [...times, ...world.nextChange.map((when) => when())].filter((time) => time > world.now);
      if (later.length === 0) return null;
      world.now = Math.min(...later);
    }
  }

  return world;
}

/** All code that can run without an event has run. */
function settled(): Promise<void> {
  return new Promise((resolve) => void setImmediate(resolve));
}
