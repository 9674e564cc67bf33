// What /metrics shows: the API's own requests as they were answered, and reloads and fleets as Redis has them at each
// scrape. Names are layercast_*_{seconds,bytes,total}; no label holds an id. Since reloads are counted from their records,
// every orchestrator of one Redis shows all of them: take the maximum over orchestrators, not the sum.

import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";
import type { FleetView, ReloadView } from "./contract/reload.js";
import { VERSION } from "./host/version.js";
import { openReloadTally, readReloads, type TalliedReloads } from "./reload-tally.js";

export interface Metrics {
  /** The registry's text and its content type. Succeeds without Redis too: it then shows that Redis is away. */
  scrape(): Promise<{ text: string; contentType: string }>;
  request(method: string, route: string, status: number, seconds: number): void;
}

/** 1 ms to 5 minutes: a tiny model's phase and a large checkpoint's. */
const PHASE_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300];
/** Long polls take up to a minute. */
const REQUEST_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];

export function createMetrics(reloads: TalliedReloads): Metrics {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry });
  const redisUp = new Gauge({
    name: "layercast_redis_up",
    help: "1 when Redis answered this scrape",
    registers: [registry],
  });
  new Gauge({
    name: "layercast_build_info",
    help: "1, with the release that this orchestrator runs",
    labelNames: ["version"] as const,
    registers: [registry],
  }).set({ version: VERSION }, 1);
  const requests = new Histogram({
    name: "layercast_http_request_duration_seconds",
    help: "Time from a request's arrival to the end of its answer; long polls and event streams take as long as they lasted",
    labelNames: ["method", "route", "status"] as const,
    buckets: REQUEST_SECONDS,
    registers: [registry],
  });
  const countReloads = reloadMetrics(registry, reloads);
  const showFleets = fleetMetrics(registry);
  const showPushes = pushMetrics(registry);
  const showEngines = engineMetrics(registry);

  async function readFleets(): Promise<void> {
    // What was true at the last scrape must not be shown when this one cannot tell.
    showFleets([]);
    showPushes([]);
    showEngines([]);
    const fleets = await reloads.fleets();
    showFleets(fleets);
    showEngines(fleets);
    const active = fleets.flatMap(({ active_reload_id }) => active_reload_id ?? []);
    showPushes(await readReloads(reloads, active));
  }

  async function readAll(): Promise<void> {
    const read = await Promise.allSettled([countReloads(), readFleets()]);
    redisUp.set(read.every(({ status }) => status === "fulfilled") ? 1 : 0);
  }

  // One scrape after another, so that none counts what another is counting.
  let last = Promise.resolve();
  return {
    async scrape() {
      last = last.then(readAll);
      await last;
      return { text: await registry.metrics(), contentType: registry.contentType };
    },
    request: (method, route, status, seconds) => requests.observe({ method, route, status: String(status) }, seconds),
  };
}

/** Makes the reloads' counters; the function given back brings them up to date. */
function reloadMetrics(registry: Registry, reloads: TalliedReloads): () => Promise<void> {
  const registers = [registry];
  const submitted = new Counter({
    name: "layercast_reloads_submitted_total",
    help: "Reloads submitted since this orchestrator started",
    labelNames: ["fleet", "kind"] as const,
    registers,
  });
  const finished = new Counter({
    name: "layercast_reloads_finished_total",
    help: "Reloads ended since this orchestrator started, by their terminal state",
    labelNames: ["fleet", "kind", "outcome"] as const,
    registers,
  });
  const observeTimes = timeMetrics(registry);
  const tally = openReloadTally(reloads);
  return async () => {
    const counted = await tally();
    for (const { fleet, kind } of counted.submitted) submitted.inc({ fleet, kind });
    for (const reload of counted.ended) {
      const { fleet, kind, state: outcome } = reload;
      finished.inc({ fleet, kind, outcome });
      observeTimes(reload);
    }
  };
}

function timeMetrics(registry: Registry): (ended: ReloadView) => void {
  const registers = [registry];
  const phases = new Histogram({
    name: "layercast_reload_phase_duration_seconds",
    help: "Time that ended reloads spent in each phase, by their terminal state; `total` is submit to end",
    labelNames: ["fleet", "kind", "outcome", "phase"] as const,
    buckets: PHASE_SECONDS,
    registers,
  });
  const stopped = new Histogram({
    name: "layercast_engine_stopped_seconds",
    help: "Time a commit kept engines from reading, first rank's start to last rank's end",
    labelNames: ["fleet", "kind"] as const,
    buckets: PHASE_SECONDS,
    registers,
  });
  const read = new Counter({ name: "layercast_read_bytes_total", help: "Read by ranks from checkpoints", registers });
  const written = new Counter({ name: "layercast_written_bytes_total", help: "Written by ranks to arenas", registers });
  return (ended) => {
    const { fleet, kind, state: outcome } = ended;
    for (const [phase, ms] of Object.entries(ended.timing_ms)) {
      if (ms !== null) phases.observe({ fleet, kind, outcome, phase }, ms / 1000);
    }
    if (ended.engine_stopped_ms !== null) stopped.observe({ fleet, kind }, ended.engine_stopped_ms / 1000);
    for (const rank of ended.ranks) {
      read.inc(rank.bytes_read);
      written.inc(rank.bytes_written);
    }
  };
}

/** Makes the fleets' gauges; the function given back fills them with these and no others. */
function fleetMetrics(registry: Registry): (fleets: readonly FleetView[]) => void {
  const registers = [registry];
  const gauge = (name: string, help: string) => new Gauge({ name, help, labelNames: ["fleet"] as const, registers });
  const routable = gauge("layercast_fleet_routable", "1 while the fleet may be routed to");
  const torn = gauge("layercast_fleet_torn", "1 while the fleet's ranks hold different weights");
  const alive = gauge("layercast_fleet_ranks_alive", "Ranks of the fleet whose lease is valid");
  const queued = gauge("layercast_fleet_reloads_queued", "Reloads that wait for the fleet");
  return (fleets) => {
    for (const each of [routable, torn, alive, queued]) each.reset();
    for (const view of fleets) {
      const labels = { fleet: view.fleet };
      routable.set(labels, view.routable ? 1 : 0);
      torn.set(labels, view.torn ? 1 : 0);
      alive.set(labels, view.ranks.filter((rank) => rank.alive).length);
      queued.set(labels, view.queued_reload_ids.length);
    }
  };
}

/** Makes the metrics of attached engines; the function given back fills them, and counts the stops that it has not seen yet. */
function engineMetrics(registry: Registry): (fleets: readonly FleetView[]) => void {
  const registers = [registry];
  const engines = new Gauge({
    name: "layercast_engines",
    help: "Engines that compute with the fleet's arenas, by state",
    labelNames: ["fleet", "state"] as const,
    registers,
  });
  const stops = new Histogram({
    name: "layercast_attached_engine_stop_seconds",
    help: "Time from the first word to stop to running again; of each attached engine the last stop before a scrape",
    labelNames: ["fleet"] as const,
    buckets: PHASE_SECONDS,
    registers,
  });
  let seen = new Map<string, number>();
  return (fleets) => {
    engines.reset();
    const now = new Map<string, number>();
    for (const { fleet, attached_engines } of fleets) {
      for (const { id, state, last_stop: stop } of attached_engines) {
        engines.inc({ fleet, state });
        if (stop === null) continue;
        const key = `${fleet} ${id}`;
        now.set(key, stop.epoch);
        if (seen.get(key) !== stop.epoch) stops.observe({ fleet }, stop.stop_ms / 1000);
      }
    }
    if (fleets.length > 0) seen = now; // nothing is known while Redis is away
  };
}

/** Makes the gauges of pushes under way; the function given back fills them with those of these reloads and no others. */
function pushMetrics(registry: Registry): (active: readonly ReloadView[]) => void {
  const registers = [registry];
  const labelNames = ["fleet", "replica", "rank", "where"] as const;
  const gauge = (name: string, help: string) => new Gauge({ name, help, labelNames, registers });
  const now = gauge("layercast_push_buffer_bytes", "Held by a rank of modules of a push that are not complete");
  const peak = gauge("layercast_push_peak_buffer_bytes", "The most that a rank has held of them in this push");
  return (active) => {
    for (const each of [now, peak]) each.reset();
    for (const { fleet, ranks } of active) {
      for (const { replica, rank, push } of ranks) {
        if (push === null) continue;
        const { buffers } = push;
        const labels = { fleet, replica: String(replica), rank: String(rank) };
        now.set({ ...labels, where: "host" }, buffers.host_bytes);
        now.set({ ...labels, where: "device" }, buffers.device_bytes);
        peak.set({ ...labels, where: "host" }, buffers.peak_host_bytes);
        peak.set({ ...labels, where: "device" }, buffers.peak_device_bytes);
      }
    }
  };
}
