// A fleet of two replicas: they commit together, go on without one that was drained, and take it back.

import { describe, expect, it } from "vitest";
import { beginLoading, decide, handInToken } from "../../orchestrator/fleet/reload-transitions.js";
import { drain, undrain } from "../../orchestrator/fleet/replica-transitions.js";
import type { LiveArena } from "../../orchestrator/fleet/state.js";
import { testFleet } from "./fleet.js";

const held = { reload: "a", content: "a", weightVersion: "a", epoch: 1, layoutDigest: "layout" };
const live: LiveArena = { state: "live", generation: 2, held };
const empty: LiveArena = { state: "empty", generation: 0, held: null };

describe("replicas", () => {
  it("the decision needs every rank of every replica, with the same bytes", () => {
    const fleet = testFleet(1, 2);
    fleet.submit("a");
    fleet.apply((draft, { now }) => beginLoading(draft, "a", 1, "layout", now));
    const token = { epoch: 1, generation: 0, finalizeMs: 0, at: 0 };
    const hand = (key: "0/0" | "1/0", digest: string) =>
      fleet.apply((draft) =>
        handInToken(draft, "a", key, { ...token, incarnation: key === "0/0" ? "0.1" : "1/0.1", digest }),
      );
    hand("0/0", "same");
    expect(() => fleet.apply((draft, context) => decide(draft, "a", 1, context, true))).toThrow(
      expect.objectContaining({ code: "not_prepared", details: expect.objectContaining({ waiting: ["1/0"] }) }),
    );
    hand("1/0", "other");
    expect(() => fleet.apply((draft, context) => decide(draft, "a", 1, context, true))).toThrow(
      expect.objectContaining({ code: "source_changed" }),
    );
    hand("1/0", "same");
    fleet.apply((draft, context) => decide(draft, "a", 1, context, true));
    expect(fleet.active().state).toBe("committing");
  });

  it("a drained one is not waited for, and the last one cannot be drained", () => {
    const fleet = testFleet(1, 2);
    fleet.join(0, "0.1", live);
    fleet.joinAs(1, 0, "1/0.1", live);
    expect(fleet.state.routable).toBe(true);
    fleet.expired.add("1/0.1");
    fleet.apply(() => {});
    expect(fleet.state.routable).toBe(false);
    fleet.apply((draft) => drain(draft, 1));
    expect(fleet.state).toMatchObject({ routable: true, drained: { 1: "out" } });
    expect(() => fleet.apply((draft) => drain(draft, 0))).toThrow(expect.objectContaining({ code: "invalid_request" }));
    expect(() => fleet.apply((draft) => drain(draft, 2))).toThrow(expect.objectContaining({ code: "not_found" }));
  });

  it("one that lives stays out until a rank of it comes anew, and joins when it holds what is committed", () => {
    const fleet = testFleet(1, 2);
    fleet.join(0, "0.1", live);
    fleet.joinAs(1, 0, "1/0.1", live);
    fleet.apply((draft) => drain(draft, 1));
    fleet.joinAs(1, 0, "1/0.1", live); // the same process, registering again
    expect(fleet.state.drained).toEqual({ 1: "out" });
    fleet.joinAs(1, 0, "1/0.2", empty);
    expect(fleet.state).toMatchObject({ routable: true, drained: { 1: "joining" } });
    fleet.joinAs(1, 0, "1/0.2", live);
    expect(fleet.state).toMatchObject({ routable: true, drained: {} });
  });

  it("one that is asked back joins at once when it holds what is committed, and else when it does", () => {
    const fleet = testFleet(1, 2);
    fleet.join(0, "0.1", live);
    fleet.joinAs(1, 0, "1/0.1", live);
    fleet.apply((draft) => drain(draft, 1));
    fleet.apply((draft) => undrain(draft, 1));
    expect(fleet.state).toMatchObject({ routable: true, drained: {} });

    fleet.apply((draft) => drain(draft, 1));
    fleet.joinAs(1, 0, "1/0.1", empty);
    fleet.apply((draft) => undrain(draft, 1));
    expect(fleet.state).toMatchObject({ routable: true, drained: { 1: "joining" } });
    fleet.apply((draft) => undrain(draft, 1)); // a repeat
    fleet.joinAs(1, 0, "1/0.1", live);
    expect(fleet.state).toMatchObject({ routable: true, drained: {} });
  });

  it("asking back one that is not drained changes nothing, and one that is not there is refused", () => {
    const fleet = testFleet(1, 2);
    const before = structuredClone(fleet.state);
    fleet.apply((draft) => undrain(draft, 1));
    expect(fleet.state.drained).toEqual(before.drained);
    expect(() => fleet.apply((draft) => undrain(draft, 2))).toThrow(expect.objectContaining({ code: "not_found" }));
  });

  it("one whose rank is lost is not taken back, so the others stay in service", () => {
    const fleet = testFleet(1, 2);
    fleet.join(0, "0.1", live);
    fleet.joinAs(1, 0, "1/0.1", live);
    fleet.apply((draft) => drain(draft, 1));
    fleet.expired.add("1/0.1");
    fleet.apply((draft) => undrain(draft, 1));
    expect(fleet.state).toMatchObject({ routable: true, drained: { 1: "joining" } });
  });

  it("nobody joins a commit, nor a reload that writes in place", () => {
    const fleet = testFleet(1, 2);
    fleet.join(0, "0.1", live);
    fleet.joinAs(1, 0, "1/0.1", live);
    fleet.apply((draft) => drain(draft, 1));
    fleet.submit("b", { inPlace: true });
    fleet.joinAs(1, 0, "1/0.2", live);
    expect(fleet.state.drained).toEqual({ 1: "joining" });
  });
});
