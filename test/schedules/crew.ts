// The processes of a fleet, started again when they die, as a supervisor does.

import { startAttachedEngine } from "./attached-engine.js";
import { heedLiveWrite, ranksOf } from "./invariants.js";
import { lose } from "./memory-queue.js";
import { startOrchestrator } from "./orchestrator-process.js";
import { type RankProcess, startRank } from "./rank-process.js";
import type { Sim } from "./sim.js";
import type { Process } from "./world.js";

const ORCHESTRATORS = ["orchestrator A", "orchestrator B"];

export interface Crew {
  ranks: Map<string, RankProcess>;
  orchestrators: Map<string, Process>;
  /** A rank's next life; the one before is over when it begins (P9). */
  replace(replica: number, rank: number): void;
}

export function startCrew(sim: Sim): Crew {
  const { world, random } = sim;
  const supervisor = world.spawn("supervisor");
  const lives = new Map<string, number>();
  const again = (start: () => void) => {
    const delayMs = random.pick([50, 500, sim.faults ? 8_000 : 500]);
    void world.event(supervisor, start, { notBefore: world.now + delayMs });
  };
  const crew: Crew = {
    ranks: new Map(),
    orchestrators: new Map(),
    replace(replica, rank) {
      const key = `${replica}/${rank}`;
      const before = crew.ranks.get(key);
      const life = (lives.get(key) ?? 0) + 1;
      lives.set(key, life);
      if (before !== undefined) world.kill(before.process);
      const started = startRank(sim, replica, rank, life, (rankKey, reload) => heedLiveWrite(sim, rankKey, reload));
      crew.ranks.set(key, started);
      onDeath(started.process, () => {
        if (crew.ranks.get(key) === started)
          again(() => crew.ranks.get(key) === started && crew.replace(replica, rank));
      });
    },
  };
  const orchestrate = (name: string) => {
    const process = startOrchestrator(sim, name);
    crew.orchestrators.set(name, process);
    onDeath(process, () => again(() => orchestrate(name)));
  };
  function onDeath(process: Process, heed: () => void): void {
    process.onDeath.push(() => {
      lose(sim.jobs, process, world.now);
      heed();
    });
  }
  const attach = (replica: number, life: number) => {
    const engine = startAttachedEngine(sim, replica, life);
    sim.attached.set(replica, engine);
    onDeath(engine.process, () => again(() => attach(replica, life + 1)));
  };
  for (const { replica, rank } of ranksOf(sim)) crew.replace(replica, rank);
  for (let replica = 0; sim.options.attached && replica < sim.options.replicas; replica++) attach(replica, 1);
  for (const name of ORCHESTRATORS) orchestrate(name);
  return crew;
}
