import { setTimeout as delay } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import { openTurns } from "../../orchestrator/reloads/turns.js";
import { signalled } from "../routes/fake-reloads.js";

describe("turns", () => {
  it("run one at a time under a key, in the order of arrival, whether or not they fail; other keys do not wait", async () => {
    const turns = openTurns(10_000);
    const log: string[] = [];
    const run = (name: string) => async () => {
      log.push(`${name} begins`);
      await delay(1);
      log.push(`${name} ends`);
      if (name === "b") throw new Error("b");
    };
    const all = [turns.take("f", run("a")), turns.take("f", run("b")), turns.take("f", run("c"))];
    const other = turns.take("g", async () => log.push("other"));
    const results = await Promise.allSettled([...all, other]);
    expect(results.map(({ status }) => status)).toEqual(["fulfilled", "rejected", "fulfilled", "fulfilled"]);
    expect(log.filter((line) => line !== "other")).toEqual(
      ["a", "b", "c"].flatMap((name) => [`${name} begins`, `${name} ends`]),
    );
    expect(log.indexOf("other")).toBeLessThan(log.indexOf("b begins"));
  });

  it("that wait too long are refused, and then never run; the others go on", async () => {
    const turns = openTurns(20);
    const { promise: finished, resolve: finish } = signalled();
    const first = turns.take("f", () => finished);
    const ran: string[] = [];
    const late = turns.take("f", async () => ran.push("late"));
    await expect(late).rejects.toMatchObject({ code: "backpressure" });
    const third = turns.take("f", async () => "third");
    finish();
    await first;
    expect(await third).toBe("third");
    expect(ran).toEqual([]);
  });
});
