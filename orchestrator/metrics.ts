// What /metrics shows: counters and durations of reloads and of the API's own requests as this orchestrator saw them, and
// the fleets' standing read from Redis at each scrape. Names are layercast_*_{seconds,bytes,total}; no label holds an id.

import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";
import type { ReloadView } from "./contract/reload.js";
import type { Reloads } from "./reloads/reloads.js";

export interface Metrics {
  /** The registry's text and its content type. */
  scrape(): Promise<{ text: string; contentType: string }>;
  submitted(kind: ReloadView["kind"]): void;
  /** Once a reload, by the orchestrator that saw it end. */
  finished(reload: ReloadView): void;
  request(method: string, route: string, status: number, seconds: number): void;
}

/** 1 ms to 5 minutes: a tiny model's phase and a large checkpoint's. */
const PHASE_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300];
/** Long polls take up to a minute. */
const REQUEST_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];

export function createMetrics(fleets: Reloads["fleets"]): Metrics {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry });
  const readFleets = fleetMetrics(registry, fleets);
  const reloads = reloadMetrics(registry);
  const requests = new Histogram({
    name: "layercast_http_request_duration_seconds",
    help: "Time from a request's arrival to the end of its answer; long polls and event streams take as long as they were kept",
    labelNames: ["method", "route", "status"] as const,
    buckets: REQUEST_SECONDS,
    registers: [registry],
  });
  return {
    ...reloads,
    scrape: async () => {
      await readFleets();
      return { text: await registry.metrics(), contentType: registry.contentType };
    },
    request: (method, route, status, seconds) => requests.observe({ method, route, status: String(status) }, seconds),
  };
}

function reloadMetrics(registry: Registry): Pick<Metrics, "submitted" | "finished"> {
  const registers = [registry];
  const submitted = new Counter({
    name: "layercast_reloads_submitted_total",
    help: "Reloads newly submitted here; a repeated submission does not count",
    labelNames: ["kind"] as const,
    registers,
  });
  const finished = new Counter({
    name: "layercast_reloads_finished_total",
    help: "Reloads that this orchestrator saw end, by their terminal state",
    labelNames: ["kind", "outcome"] as const,
    registers,
  });
  const phases = new Histogram({
    name: "layercast_reload_phase_duration_seconds",
    help: "Time that ended reloads spent in each phase; `total` is submit to end",
    labelNames: ["phase"] as const,
    buckets: PHASE_SECONDS,
    registers,
  });
  const stopped = new Histogram({
    name: "layercast_engine_stopped_seconds",
    help: "Time a commit kept engines from reading, first rank's start to last rank's end",
    buckets: PHASE_SECONDS,
    registers,
  });
  const bytes = new Counter({
    name: "layercast_reload_bytes_total",
    help: "Bytes that the ranks of ended reloads read from checkpoints and wrote to arenas",
    labelNames: ["direction"] as const,
    registers,
  });
  return {
    submitted: (kind) => submitted.inc({ kind }),
    finished: (reload) => {
      finished.inc({ kind: reload.kind, outcome: reload.state });
      for (const [phase, ms] of Object.entries(reload.timing_ms)) if (ms !== null) phases.observe({ phase }, ms / 1000);
      if (reload.engine_stopped_ms !== null) stopped.observe(reload.engine_stopped_ms / 1000);
      for (const rank of reload.ranks) {
        bytes.inc({ direction: "read" }, rank.bytes_read);
        bytes.inc({ direction: "written" }, rank.bytes_written);
      }
    },
  };
}

/** Makes the fleets' gauges; the function given back fills them from one reading of Redis. */
function fleetMetrics(registry: Registry, fleets: Reloads["fleets"]): () => Promise<void> {
  const registers = [registry];
  const gauge = (name: string, help: string) => new Gauge({ name, help, labelNames: ["fleet"] as const, registers });
  const routable = gauge("layercast_fleet_routable", "1 while the fleet may be routed to");
  const torn = gauge("layercast_fleet_torn", "1 while the fleet's ranks hold different weights");
  const alive = gauge("layercast_fleet_ranks_alive", "Ranks of the fleet whose lease is valid");
  const queued = gauge("layercast_fleet_reloads_queued", "Reloads that wait for the fleet");
  const redisUp = new Gauge({ name: "layercast_redis_up", help: "1 when Redis answered this scrape", registers });

  return async () => {
    // Without Redis a scrape still succeeds: it shows that Redis is away.
    const views = await fleets().catch(() => null);
    redisUp.set(views === null ? 0 : 1);
    for (const each of [routable, torn, alive, queued]) each.reset();
    for (const view of views ?? []) {
      const labels = { fleet: view.fleet };
      routable.set(labels, view.routable ? 1 : 0);
      torn.set(labels, view.torn ? 1 : 0);
      alive.set(labels, view.ranks.filter((rank) => rank.alive).length);
      queued.set(labels, view.queued_reload_ids.length);
    }
  };
}
