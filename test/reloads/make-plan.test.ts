// For which ranks a plan is made that nobody submits.

import { describe, expect, it } from "vitest";
import { plannedRanks } from "../../orchestrator/reloads/make-plan.js";

const fleetOf = (expertParallel?: boolean) => ({
  topology: { replicas: 1, tensorParallelSize: 8, ...(expertParallel === undefined ? {} : { expertParallel }) },
});

describe("plannedRanks", () => {
  it("are the request's, else the fleet's", () => {
    expect(plannedRanks({ tensor_parallel_size: 4 }, null)).toEqual({ tensorParallelSize: 4, expertParallel: false });
    expect(plannedRanks({}, fleetOf(true))).toEqual({ tensorParallelSize: 8, expertParallel: true });
    expect(plannedRanks({}, fleetOf())).toEqual({ tensorParallelSize: 8, expertParallel: false });
    expect(plannedRanks({ tensor_parallel_size: 2, expert_parallel: false }, fleetOf(true))).toEqual({
      tensorParallelSize: 2,
      expertParallel: false,
    });
  });

  it("must be known from somewhere", () => {
    for (const fleet of [null, { topology: null }]) {
      expect(() => plannedRanks({ expert_parallel: true }, fleet)).toThrow(/give tensor_parallel_size, or a fleet/);
    }
  });
});
