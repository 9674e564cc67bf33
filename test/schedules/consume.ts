// One of a process's hands at a queue: takes a job, runs it, says what came of it, and again.

import type { Job } from "./memory-queue.js";
import { settle, take, takeable } from "./memory-queue.js";
import { ask, type Sim } from "./sim.js";
import type { Process } from "./world.js";

export function consume(
  sim: Sim,
  process: Process,
  queue: string,
  run: (work: Job["work"], attempt: number, isLast: boolean) => Promise<unknown>,
): void {
  const again = async () => {
    for (;;) {
      const taken = await sim.world.event(
        process,
        () => {
          const job = takeable(sim.jobs, queue, sim.world.now);
          return job === null ? null : { job, attempt: job.attemptsMade + 1, ...take(job, process) };
        },
        { ready: () => takeable(sim.jobs, queue, sim.world.now) !== null },
      );
      if (taken === null) continue;
      const { job, attempt, delivery, isLast } = taken;
      let failure: unknown = null;
      try {
        await run(job.work, attempt, isLast);
      } catch (error) {
        failure = error;
        sim.world.tell(`${process.name}: ${job.id} fails: ${error instanceof Error ? error.message : error}`);
      }
      // The queue's own connection asks until it is answered.
      while (!(await tell(sim, process, job.id, delivery, failure)));
    }
  };
  void again();
}

function tell(sim: Sim, process: Process, id: string, delivery: number, failure: unknown): Promise<boolean> {
  return ask(sim, process, () => settle(sim.jobs, id, delivery, failure, sim.world.now, sim.random.next())).then(
    () => true,
    () => false,
  );
}
