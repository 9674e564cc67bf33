import { afterEach, describe, expect, it, vi } from "vitest";
import { LayercastError } from "../../orchestrator/contract/errors.js";
import { PLAN_FORMAT } from "../../orchestrator/contract/plan.js";
import type { ReloadView } from "../../orchestrator/contract/reload.js";
import { PACKAGE } from "../../orchestrator/host/package-root.js";
import type { Reloads } from "../../orchestrator/reloads/reloads.js";
import type { App } from "../../orchestrator/routes/app.js";
import {
  attachedEngine,
  committedView,
  fleetView,
  rankProgress,
  rankPush,
  reloadView,
  testServer,
} from "./fake-reloads.js";

let app: App;
afterEach(() => app.close());
const serve = async (own: Partial<Reloads> = {}) => {
  ({ app } = await testServer(own));
};
const redisGone = () => Promise.reject(new Error("Connection is closed."));
const scrape = async () => (await app.inject("/metrics")).body;
const value = (text: string, series: string) =>
  text
    .split("\n")
    .find((line) => line.startsWith(`${series} `))
    ?.slice(series.length + 1);

describe("the probes", () => {
  it("live is true without Redis, ready is not", async () => {
    await serve({ ready: async () => false });
    expect((await app.inject("/livez")).statusCode).toBe(200);
    const ready = await app.inject("/readyz");
    expect(ready.json()).toMatchObject({ status: 503, code: "redis_unavailable", retryable: true });
    expect(ready.headers["retry-after"]).toBe("1");
  });

  it("the version is package.json's, without a token", async () => {
    ({ app } = await testServer({}, { token: "secret" }));
    const { version } = PACKAGE;
    expect((await app.inject("/version")).json()).toEqual({ version, api: "/v1", plan_format: PLAN_FORMAT });
  });

  it("ready is true with Redis", async () => {
    await serve();
    expect((await app.inject("/readyz")).json()).toEqual({ status: "ready" });
  });
});

describe("the metrics", () => {
  it("name the release that runs", async () => {
    await serve({ ready: async () => true });
    expect(value(await scrape(), `layercast_build_info{version="${PACKAGE.version}"}`)).toBe("1");
  });

  const COMMITTED = 'fleet="default",kind="reload",outcome="committed"';
  const later = new Date(Date.now() + 60_000).toISOString();

  it("count each reload once when submitted and once when ended, with its phases in seconds", async () => {
    let listed: ReloadView[] = [reloadView({ created_at: later })];
    const ended = committedView({ created_at: later, finished_at: later });
    await serve({ list: async () => ({ reloads: listed, next_cursor: null }), get: async () => ended });
    const first = await scrape();
    expect(value(first, 'layercast_reloads_submitted_total{fleet="default",kind="reload"}')).toBe("1");
    expect(
      value(first, 'layercast_reloads_finished_total{fleet="default",kind="reload",outcome="committed"}'),
    ).toBeUndefined();
    listed = [ended];
    await scrape();
    const third = await scrape();
    expect(value(third, 'layercast_reloads_submitted_total{fleet="default",kind="reload"}')).toBe("1");
    expect(value(third, 'layercast_reloads_finished_total{fleet="default",kind="reload",outcome="committed"}')).toBe(
      "1",
    );
    expect(value(third, `layercast_reload_phase_duration_seconds_sum{${COMMITTED},phase="load"}`)).toBe("0.03");
    expect(value(third, 'layercast_engine_stopped_seconds_sum{fleet="default",kind="reload"}')).toBe("0.003");
    expect(value(third, "layercast_read_bytes_total")).toBe("2000");
    expect(value(third, "layercast_written_bytes_total")).toBe("1000");
  });

  it("tell the time of reloads that were superseded from that of reloads that committed", async () => {
    const outcomes = [committedView(), reloadView({ state: "superseded" })].map((reload, n) => ({
      ...reload,
      ...{ reload_id: `rl-${n}`, created_at: later, finished_at: later },
      timing_ms: { ...committedView().timing_ms, total: n === 0 ? 100 : 90_000 },
    }));
    await serve({ list: async () => ({ reloads: outcomes, next_cursor: null }) });
    const text = await scrape();
    expect(value(text, `layercast_reload_phase_duration_seconds_sum{${COMMITTED},phase="total"}`)).toBe("0.1");
  });

  it("count at the first look all that was submitted since the start, and what was unfinished then when it ends", async () => {
    const all = Array.from({ length: 540 }, (_, n) => committedView({ reload_id: `rl-${n}`, created_at: later }));
    const before = reloadView({ reload_id: "before" });
    const get = vi.fn(async () => before);
    await serve({
      list: async ({ cursor, limit }) => {
        const from = Number(cursor ?? 0);
        const reloads = [...all, before].slice(from, from + limit);
        return { reloads, next_cursor: from + limit <= all.length ? String(from + limit) : null };
      },
      fleets: async () => [fleetView({ active_reload_id: "before" })],
      get,
    });
    expect(value(await scrape(), 'layercast_reloads_submitted_total{fleet="default",kind="reload"}')).toBe("540");
    get.mockResolvedValue(committedView({ reload_id: "before", finished_at: later }));
    const text = await scrape();
    expect(value(text, `layercast_reloads_finished_total{${COMMITTED}}`)).toBe("1");
  });

  it("do not count what had ended before the orchestrator started", async () => {
    await serve({ list: async () => ({ reloads: [committedView()], next_cursor: null }) });
    expect(await scrape()).not.toMatch(/^layercast_reloads_(submitted|finished)_total\{/m);
  });

  it("count all of several pages, and of two scrapes at once each reload once", async () => {
    const all = Array.from({ length: 450 }, (_, n) =>
      committedView({ reload_id: `rl-${n}`, created_at: later, finished_at: later }),
    );
    let upTo = 449;
    await serve({
      list: async ({ cursor, limit }) => {
        const from = cursor === null ? upTo : Number(cursor);
        const reloads = all.slice(from, from + limit);
        return { reloads, next_cursor: from + limit < all.length ? String(from + limit) : null };
      },
    });
    await scrape();
    upTo = 0;
    const [, text] = await Promise.all([scrape(), scrape()]);
    expect(value(text ?? "", 'layercast_reloads_submitted_total{fleet="default",kind="reload"}')).toBe("450");
  });

  it("show the fleets as they are at the scrape, and none that is gone", async () => {
    let fleets = [fleetView(), fleetView({ fleet: "b", routable: false, torn: true, queued_reload_ids: ["x"] })];
    await serve({ fleets: async () => fleets });
    const text = await scrape();
    expect(value(text, 'layercast_fleet_routable{fleet="default"}')).toBe("1");
    expect(value(text, 'layercast_fleet_routable{fleet="b"}')).toBe("0");
    expect(value(text, 'layercast_fleet_torn{fleet="b"}')).toBe("1");
    expect(value(text, 'layercast_fleet_reloads_queued{fleet="b"}')).toBe("1");
    expect(value(text, 'layercast_fleet_ranks_alive{fleet="default"}')).toBe("2");
    expect(value(text, "layercast_redis_up")).toBe("1");
    fleets = [];
    expect(await scrape()).not.toContain('fleet="b"');
  });

  it("show what ranks buffer of a push under way, on the host and the device apart, and nothing of one that has ended", async () => {
    const device = { ...rankPush.buffers, device_bytes: 30, peak_device_bytes: 70 };
    const ranks = [rankProgress(0, { push: rankPush }), rankProgress(1, { push: { ...rankPush, buffers: device } })];
    const pushing = reloadView({ reload_id: "rl-push", ranks: [...ranks, rankProgress(2)] });
    let fleets = [fleetView({ active_reload_id: "rl-push" }), fleetView({ fleet: "b", active_reload_id: "rl-gone" })];
    await serve({
      fleets: async () => fleets,
      get: async (id) => {
        if (id === "rl-push") return pushing;
        throw new LayercastError("not_found", "its record is not kept", {});
      },
    });
    const text = await scrape();
    const shown = (name: string, rank: number, where: string) =>
      value(text, `layercast_push_${name}{fleet="default",replica="0",rank="${rank}",where="${where}"}`);
    expect([shown("buffer_bytes", 0, "host"), shown("buffer_bytes", 0, "device")]).toEqual(["4096", "0"]);
    expect([shown("buffer_bytes", 1, "device"), shown("peak_buffer_bytes", 1, "device")]).toEqual(["30", "70"]);
    expect(shown("peak_buffer_bytes", 0, "host")).toBe("8192");
    expect(shown("buffer_bytes", 2, "host")).toBeUndefined();
    expect(text).not.toContain("rl-push");
    expect(value(text, "layercast_redis_up")).toBe("1");
    fleets = [fleetView()];
    expect(await scrape()).not.toMatch(/^layercast_push_/m);
  });

  it("count attached engines by state, and each of their stops once", async () => {
    const stopped = (epoch: number, stop_ms: number) =>
      attachedEngine({ last_stop: { epoch, weight_version: "1", stop_ms, still_ms: 1 } });
    let engines = [stopped(3, 20), attachedEngine({ id: "e-1", state: "starting", last_stop: null })];
    await serve({ fleets: async () => [fleetView({ attached_engines: engines })] });
    await scrape();
    const text = await scrape();
    expect(value(text, 'layercast_engines{fleet="default",state="ready"}')).toBe("1");
    expect(value(text, 'layercast_engines{fleet="default",state="starting"}')).toBe("1");
    expect(value(text, 'layercast_attached_engine_stop_seconds_count{fleet="default"}')).toBe("1");
    engines = [stopped(4, 30)];
    const after = await scrape();
    expect(value(after, 'layercast_attached_engine_stop_seconds_count{fleet="default"}')).toBe("2");
    expect(value(after, 'layercast_attached_engine_stop_seconds_sum{fleet="default"}')).toBe("0.05");
    expect(value(after, 'layercast_engines{fleet="default",state="starting"}')).toBeUndefined();
  });

  it("can be scraped without Redis, and then say so", async () => {
    await serve({ fleets: redisGone, list: redisGone });
    expect(value(await scrape(), "layercast_redis_up")).toBe("0");
  });

  it("have the requests by route, never by id, and the process's own", async () => {
    await serve();
    await app.inject("/v1/reloads/rl-77");
    const text = await scrape();
    expect(text).toContain(
      'layercast_http_request_duration_seconds_count{method="GET",route="/v1/reloads/:id",status="200"} 1',
    );
    expect(text).not.toContain("rl-77");
    expect(text).toContain("process_cpu_seconds_total");
  });
});

describe("the dashboard", () => {
  it("is served with everything it loads, from this server alone", async () => {
    await serve();
    const page = await app.inject("/");
    expect(page.headers["content-type"]).toBe("text/html; charset=utf-8");
    expect(page.headers["content-security-policy"]).toContain("default-src 'self'");
    const own = [...page.body.matchAll(/(?:src|href)="([^"]+)"/g)].map((match) => match[1] ?? "");
    const files = own.filter((url) => url.startsWith("/dashboard/"));
    expect(files.sort()).toEqual(["/dashboard/dashboard.css", "/dashboard/dashboard.js"]);
    // All that is imported, and what that imports.
    const loaded = new Set(files);
    for (const file of loaded) {
      const { statusCode, headers, body } = await app.inject(file);
      expect([file, statusCode]).toEqual([file, 200]);
      if (file.endsWith(".js")) expect(headers["content-type"]).toBe("text/javascript; charset=utf-8");
      for (const [, imported = ""] of body.matchAll(/from "([^"]+)"/g)) {
        loaded.add(new URL(imported, `http://server${file}`).pathname);
      }
    }
    expect(loaded.size).toBeGreaterThan(5);
    expect(own.filter((url) => url.includes("//"))).toEqual([]);
  });

  it("has no other files", async () => {
    await serve();
    for (const file of ["..%2Fserver.ts", "package.json", "%2e%2e%2fmain.ts"]) {
      expect((await app.inject(`/dashboard/${file}`)).statusCode).toBe(404);
    }
  });
});
