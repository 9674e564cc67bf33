// The whole HTTP server, not listening: validation, errors, authorization, OpenAPI and all routes. It keeps no state but
// the metrics' counters, so that any number of orchestrators can serve the same Redis.

import { randomUUID } from "node:crypto";
import { setMaxListeners } from "node:events";
import type { ServerResponse } from "node:http";
import type { TypeBoxTypeProvider } from "@fastify/type-provider-typebox";
import { fastify, LogController } from "fastify";
import type { Logger } from "pino";
import { LayercastError } from "./contract/errors.js";
import type { Metrics } from "./metrics.js";
import type { Reloads } from "./reloads/reloads.js";
import type { App } from "./routes/app.js";
import { addAuthorization } from "./routes/auth.js";
import { BODY_PACE, type BodyPace } from "./routes/body-progress.js";
import { addBucketRoutes } from "./routes/buckets.js";
import { addEventRoutes } from "./routes/events.js";
import { addFleetRoutes } from "./routes/fleets.js";
import { addHealthRoutes } from "./routes/health.js";
import { createHttpServer } from "./routes/http-server.js";
import { acceptJson } from "./routes/json-body.js";
import { addOpenApi } from "./routes/openapi.js";
import { addPages } from "./routes/pages.js";
import { addPlanRoutes } from "./routes/plans.js";
import { sendProblem } from "./routes/problem.js";
import { addReloadRoutes } from "./routes/reloads.js";
import { SCHEMAS } from "./routes/schemas.js";
import { validatorCompiler } from "./routes/validation.js";

export interface ServerDeps {
  reloads: Reloads;
  log: Logger;
  metrics: Metrics;
  token: string | null;
  heartbeatMs?: number;
  bodyPace?: BodyPace;
}

/** Of a body whose route sets no limit of its own; a submit may bring a list of tensors, and a bucket is never held whole. */
const BODY_LIMIT_BYTES = 1024 * 1024;
const HEARTBEAT_MS = 15_000;

export async function buildServer(deps: ServerDeps): Promise<App> {
  const app: App = fastify({
    loggerInstance: deps.log,
    logController: new LogController({ disableRequestLogging: true }),
    genReqId: () => randomUUID(),
    bodyLimit: BODY_LIMIT_BYTES,
    serverFactory: (answer) => createHttpServer(answer, deps.bodyPace ?? BODY_PACE),
    clientErrorHandler: () => {}, // the server's own answers
    routerOptions: { maxParamLength: 500 },
    // A request that arrives while others end is still answered; its connection is closed after it.
    return503OnClosing: false,
    frameworkErrors: (error, request, reply) => void sendProblem(error, request, reply),
  }).withTypeProvider<TypeBoxTypeProvider>();

  addValidation(app);
  addErrors(app);
  addObservation(app, deps.metrics);
  addAuthorization(app, deps.token);
  await addOpenApi(app);

  const { reloads, metrics } = deps;
  const routeDeps = { reloads, metrics, closing: closePromptly(app), heartbeatMs: deps.heartbeatMs ?? HEARTBEAT_MS };
  addReloadRoutes(app, routeDeps);
  addBucketRoutes(app, routeDeps);
  addEventRoutes(app, routeDeps);
  addPlanRoutes(app, routeDeps);
  addFleetRoutes(app, routeDeps);
  addHealthRoutes(app, routeDeps);
  await addPages(app);
  await app.ready();
  return app;
}

function addValidation(app: App): void {
  for (const schema of SCHEMAS) app.addSchema(schema);
  app.setValidatorCompiler(validatorCompiler(SCHEMAS));
  // Answers are checked by the compiler and by tests; a serializer made from the schema would drop what it does not know.
  app.setSerializerCompiler(() => JSON.stringify);
  acceptJson(app);
}

function addErrors(app: App): void {
  app.setErrorHandler((error, request, reply) => sendProblem(error, request, reply));
  app.setNotFoundHandler((request, reply) => {
    const path = request.url.split("?", 1)[0];
    const error = new LayercastError(
      "not_found",
      `there is no route ${request.method} ${path}: /docs lists those there are`,
    );
    return sendProblem(error, request, reply);
  });
}

function addObservation(app: App, metrics: Metrics): void {
  app.addHook("onResponse", async (request, reply) => {
    const route = request.routeOptions.url ?? "none";
    metrics.request(request.method, route, reply.statusCode, reply.elapsedTime / 1000);
    const fields = { method: request.method, route, status: reply.statusCode, ms: Math.round(reply.elapsedTime) };
    request.log.debug(fields, "answered");
  });
}

/**
 * Aborted when the server closes; long polls and event streams end on it. Once no request is left, the connections are
 * dropped: those that never carried a request (a browser opens some ahead) would keep the server open for seconds.
 */
function closePromptly(app: App): AbortSignal {
  const closing = new AbortController();
  setMaxListeners(0, closing.signal);
  const answering = new Set<ServerResponse>();
  const dropIfDone = () => {
    if (closing.signal.aborted && answering.size === 0) app.server.closeAllConnections();
  };
  app.server.on("request", (_request, response: ServerResponse) => {
    answering.add(response);
    response.once("close", () => {
      answering.delete(response);
      dropIfDone();
    });
  });
  app.addHook("preClose", async () => {
    closing.abort();
    // After the server has stopped listening, which Fastify does next.
    setImmediate(dropIfDone);
  });
  return closing.signal;
}
