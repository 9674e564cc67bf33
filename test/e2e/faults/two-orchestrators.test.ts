// Two orchestrators on one Redis: when one dies or stands still at any step, the other takes the reload on (P7), and the one
// that comes back late harms nothing.

import { afterAll, afterEach, beforeAll, beforeEach, expect, it } from "vitest";
import type { Client } from "../../../orchestrator/cli/http-client.js";
import { everyOther } from "../../deep.js";
import { isAlive } from "../cluster.js";
import { goOn, type SecondOrchestrator, startOrchestrator, submitToBoth } from "../more-processes.js";
import { atStep, describeFaults } from "./fault-fleet.js";

const STEPS = ["start", "planned", "enqueued", "decide", "decided", "swaps_sent"];

describeFaults("of two orchestrators", { tp: 2 }, (fleet) => {
  let second: SecondOrchestrator;
  beforeAll(async () => {
    second = await startOrchestrator(fleet.cluster);
  });
  beforeEach(async () => {
    if (!isAlive(second.pid)) second = await startOrchestrator(fleet.cluster); // the law before has killed it
  });
  afterEach(() => goOn(fleet.cluster, second));
  afterAll(() => second.end());

  async function committedBy(client: Client, id: string): Promise<void> {
    const ended = await fleet.cluster.until("the other orchestrator to see it committed", async () => {
      const reload = await client.reload(id);
      return reload.finished_at === null ? null : reload;
    });
    expect(ended).toMatchObject({ state: "committed", error: null });
  }

  const otherThan = (pid: number) => (pid === second.pid ? fleet.cluster.client : second.client);

  it.each(everyOther(STEPS))(
    "one stands still at orchestrator.%s: the other commits, and the late one changes nothing",
    async (step) => {
      const fault = atStep(fleet, step, "stop");
      const { reload_id } = await submitToBoth(fleet.cluster, second, fleet.body("v2"));
      const pid = await fault.reached();
      await committedBy(otherThan(pid), reload_id);
      expect(isAlive(pid)).toBe(true);
      process.kill(pid, "SIGCONT");
      await fleet.holds("v2");
      await fleet.goesOn();
    },
  );

  it.each(everyOther(STEPS, 1))("one dies at orchestrator.%s: the other commits before it is back", async (step) => {
    const back = fleet.cluster.fault("orchestrator.starting", "wait");
    const fault = atStep(fleet, step, "kill");
    const { reload_id } = await submitToBoth(fleet.cluster, second, fleet.body("v2"));
    const pid = await fault.reached();
    await committedBy(otherThan(pid), reload_id);
    back.release();
    await fleet.cluster.whenAnswering();
    await fleet.holds("v2");
    await fleet.goesOn();
  });
});
