// What every fault test shares: a fleet whose weights are known, one fault a law, and what must hold once the fault is over.

import { afterAll, beforeAll, beforeEach, describe, expect } from "vitest";
import type { Golden } from "../../../orchestrator/cli/compare-tensors.js";
import type { FleetView, ReloadView } from "../../../orchestrator/contract/reload.js";
import {
  type Cluster,
  type ClusterOptions,
  checkpoint,
  clearFaults,
  type SubmitBody,
  startCluster,
} from "../cluster.js";

/** How often each law is put to the test: `npm run test:faults` asks for more than once. */
const ROUNDS = Number(process.env.LAYERCAST_FAULT_ROUNDS ?? 1);

type RankView = FleetView["ranks"][number];

export type Version = "v1" | "v2";

export interface FaultFleet {
  readonly cluster: Cluster;
  /** A submission of the version; `policy` and the like beside it. */
  body(version: Version, more?: Record<string, unknown>): SubmitBody;
  submit(version: Version, more?: Record<string, unknown>): Promise<ReloadView>;
  /** Every rank of every replica holds exactly that version, and the fleet says so. */
  holds(version: Version): Promise<void>;
  /** The reload ends committed, and every rank holds it. */
  commits(reload: ReloadView, version: Version): Promise<ReloadView>;
  /** What must follow every fault: the next good reload commits. */
  goesOn(): Promise<void>;
}

/** Jobs of one layer, so that there are many places to die at. */
const POLICY = { attempts: 5, backoff_ms: 1, layers_per_job: 1 };

/** Each law begins with v1 on all ranks, and is tried ROUNDS times. */
export function describeFaults(name: string, options: ClusterOptions, laws: (fleet: FaultFleet) => void): void {
  describe(name, { repeats: ROUNDS - 1 }, () => {
    let cluster: Cluster | null = null;
    const running = () => {
      if (cluster === null) throw new Error("the cluster has not been started");
      return cluster;
    };
    const known = new Map<Version, Golden[]>();
    const fleet = fleetOf(running, known);
    beforeAll(async () => {
      cluster = await startCluster(options);
      for (const version of ["v2", "v1"] as const) {
        const reload = await cluster.reload(fleet.body(version));
        expect(reload).toMatchObject({ state: "committed", error: null });
        known.set(version, await cluster.exportAll());
      }
    });
    afterAll(() => cluster?.stop());
    beforeEach(async () => {
      clearFaults(running());
      await running().fleetWhere(({ routable, active_reload_id }) => routable && active_reload_id === null);
    });
    laws(fleet);
  });
}

function fleetOf(running: () => Cluster, known: ReadonlyMap<Version, Golden[]>): FaultFleet {
  const fleet: FaultFleet = {
    get cluster() {
      return running();
    },
    body: (version, { policy, ...more } = {}) => ({
      source: checkpoint("tiny-qwen3", version),
      weight_version: version,
      recipe: { scheme: "fp8-block" },
      policy: { ...POLICY, ...(policy as object | undefined) },
      ...more,
    }),
    submit: (version, more) => running().submit(fleet.body(version, more)),
    async holds(version) {
      const cluster = running();
      // A rank counts until its lease has run out: what is looked at here are the ranks of now.
      const isOfNow = ({ replica, rank, pid }: RankView) => pid === cluster.pidOf(`worker ${replica}/${rank}`);
      await cluster.fleetWhere(({ routable, ranks }) => routable && ranks.every(isOfNow));
      const view = await cluster.client.fleet(cluster.fleet);
      expect(view).toMatchObject({ weight_version: version, routable: true, torn: false });
      expect(await running().exportAll()).toEqual(known.get(version));
    },
    async commits({ reload_id }, version) {
      const ended = await running().ended(reload_id);
      expect(ended).toMatchObject({ state: "committed", error: null, weight_version: version });
      await fleet.holds(version);
      return ended;
    },
    async goesOn() {
      clearFaults(running());
      await fleet.commits(await fleet.submit("v1"), "v1");
    },
  };
  return fleet;
}

/**
 * A fault at an orchestrator's step, and `reached`, which resolves with who met it. Ranks swap by themselves as soon as it is
 * decided, so one is held until the steps after that have been reached too.
 */
export function atStep({ cluster }: FaultFleet, step: string, action: "kill" | "stop"): { reached(): Promise<number> } {
  const fault = cluster.fault(`orchestrator.${step}`, action);
  const held = ["decided", "swaps_sent"].includes(step) ? cluster.fault("worker.swap@0-1", "wait") : null;
  return {
    async reached() {
      const pid = await fault.hit();
      held?.release();
      return pid;
    },
  };
}

/** A rank's control page as anybody can read it (docs/arena-format.md). */
export function readControlPage(file: Buffer): { state: number; generation: bigint; epoch: bigint } {
  return { state: file.readUInt32LE(12), generation: file.readBigUInt64LE(16), epoch: file.readBigUInt64LE(24) };
}
