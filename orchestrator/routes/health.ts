// The probes and the metrics.

import { Type } from "typebox";
import { LayercastError } from "../contract/errors.js";
import type { App, RouteDeps } from "./app.js";
import { problems, textAnswer } from "./schemas.js";

const tags = ["health"];
const open = { security: [] };
const Status = Type.Object({ status: Type.String() });

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
    summary: "Whether requests can be served: Redis answers",
    ...open,
    response: { 200: Status, ...problems("redis_unavailable") },
  };
  app.get("/readyz", { schema: ready }, async () => {
    if (await reloads.ready()) return { status: "ready" };
    throw new LayercastError("redis_unavailable", "not ready: Redis does not answer; try again once it is back");
  });

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
