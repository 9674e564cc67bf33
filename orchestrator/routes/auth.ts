// Who may call. With a token: everything needs it but the pages and documents that are the same on every installation, and
// the probes. Without one the server listens on loopback only, and what a browser brings from foreign pages is refused.

import { createHash, timingSafeEqual } from "node:crypto";
import type { FastifyRequest } from "fastify";
import { LayercastError } from "../contract/errors.js";
import { isLoopback } from "../host/config.js";
import type { App } from "./app.js";

const OPEN_ROUTES = new Set(["/", "/dashboard/:file", "/livez", "/readyz", "/version", "/openapi.json"]);
const OPEN_PREFIX = "/docs";

export function addAuthorization(app: App, token: string | null): void {
  if (token === null) {
    app.addHook("onRequest", async (request) => refuseForeignPage(request));
    return;
  }
  const expected = digest(token);
  app.addHook("onRequest", async (request) => {
    if (!isOpen(request) && !carries(request, expected)) {
      throw new LayercastError(
        "unauthorized",
        "this needs the bearer token that the orchestrator was started with: send `Authorization: Bearer TOKEN`",
      );
    }
  });
}

/** By the route that matched, not by the URL as written: there are many ways to write one. */
function isOpen(request: FastifyRequest): boolean {
  const route = request.routeOptions.url;
  if (route === undefined) return false;
  return OPEN_ROUTES.has(route) || route === OPEN_PREFIX || route.startsWith(`${OPEN_PREFIX}/`);
}

function carries(request: FastifyRequest, expected: Buffer): boolean {
  const match = /^Bearer +(\S+)$/i.exec(request.headers.authorization ?? "");
  // Digests have one length, so that the comparison's time tells nothing about the token's.
  return match?.[1] !== undefined && timingSafeEqual(digest(match[1]), expected);
}

function digest(token: string): Buffer {
  return createHash("sha256").update(token).digest();
}

/** A page from elsewhere can make a browser on this machine send requests here, also under a name that it points here. */
function refuseForeignPage(request: FastifyRequest): void {
  const origin = request.headers.origin;
  const host = request.headers.host ?? "";
  const sameOrigin = origin === undefined || origin.replace(/^https?:\/\//, "") === host;
  if (sameOrigin && (host === "" || isLoopback(host.replace(/:\d+$/, "")))) return;
  throw new LayercastError(
    "unauthorized",
    `this came for host '${host}'${origin === undefined ? "" : ` from a page of ${origin}`}: without a token only ` +
      "localhost and loopback addresses are answered; configure a token to use other names",
    { host, origin: origin ?? null },
  );
}
