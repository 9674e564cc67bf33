// The types that every route file shares: the Fastify instance with our logger and TypeBox types, and what routes call.

import type { IncomingMessage, ServerResponse } from "node:http";
import type { TypeBoxTypeProvider } from "@fastify/type-provider-typebox";
import type { FastifyInstance, RawServerDefault } from "fastify";
import type { Logger } from "pino";
import type { Metrics } from "../metrics.js";
import type { Reloads } from "../reloads/reloads.js";

export type App = FastifyInstance<RawServerDefault, IncomingMessage, ServerResponse, Logger, TypeBoxTypeProvider>;

export interface RouteDeps {
  reloads: Reloads;
  metrics: Metrics;
  /** Aborted when the server closes: whatever waits must end. */
  closing: AbortSignal;
  /** Silence after which an event stream sends a heartbeat. */
  heartbeatMs: number;
}
