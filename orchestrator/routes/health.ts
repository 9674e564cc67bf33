// The probes and the metrics.

import { Type } from "typebox";
import { LayercastError } from "../contract/errors.js";
import { PLAN_FORMAT } from "../contract/plan.js";
import { VERSION } from "../host/version.js";
import type { App, RouteDeps } from "./app.js";
import { problems, textAnswer } from "./schemas.js";

const tags = ["health"];
const open = { security: [] };
const Status = Type.Object({ status: Type.String() });
const Version = Type.Object({
  version: Type.String({ description: "The release that this orchestrator runs" }),
  api: Type.String({ description: "Path prefix of the API's version" }),
  plan_format: Type.Integer({ description: "Of plans in Redis; a plan of another format is not read" }),
});

export function addHealthRoutes(app: App, { reloads, metrics }: RouteDeps): void {
  const live = {
    operationId: "checkLive",
    tags,
    summary: "Whether the process answers",
    ...open,
    response: { 200: Status },
  };
  app.get("/livez", { schema: live }, async () => ({ status: "live" }));

  const ready = {
    operationId: "checkReady",
    tags,
    summary: "Whether requests can be served: Redis answers and takes writes",
    ...open,
    response: { 200: Status, ...problems("redis_unavailable") },
  };
  app.get("/readyz", { schema: ready }, async () => {
    if (await reloads.ready()) return { status: "ready" };
    throw new LayercastError("redis_unavailable", "not ready: Redis does not answer; try again once it is back");
  });

  const version = {
    operationId: "readVersion",
    tags,
    summary: "The release that answers",
    ...open,
    response: { 200: Version },
  };
  app.get("/version", { schema: version }, async () => ({ version: VERSION, api: "/v1", plan_format: PLAN_FORMAT }));

  const scrape = {
    operationId: "readMetrics",
    tags,
    summary: "Prometheus metrics",
    response: { 200: textAnswer("text/plain", "Prometheus text format"), ...problems() },
  };
  app.get("/metrics", { schema: scrape }, async (_request, reply) => {
    const { text, contentType } = await metrics.scrape();
    return reply.type(contentType).send(text);
  });
}
