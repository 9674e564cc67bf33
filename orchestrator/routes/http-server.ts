// The HTTP server below Fastify, with every limit on a connection. Fastify's own requestTimeout and connectionTimeout stay off:
// the one would end a large bucket, the other a long poll. Instead headers must arrive within a time, a body must make progress
// (body-progress.ts), an idle connection is closed, and TCP keepalive finds a host that is gone.

import { createServer, type IncomingMessage, type RequestListener, type Server, type ServerResponse } from "node:http";
import type { Socket } from "node:net";
import { LayercastError } from "../contract/errors.js";
import { type BodyPace, watchBody } from "./body-progress.js";
import { type RawProblem, respondProblem, writeProblem } from "./raw-problem.js";

/** From the connection's first moment; looked at each CHECK_EVERY_MS. */
const HEADERS_WITHIN_MS = 20_000;
const CHECK_EVERY_MS = 5_000;
/** A connection without a request; longer than a load balancer usually keeps one. */
const IDLE_MS = 72_000;
/** Then the kernel asks once a second whether the other host is there, ten times. */
const KEEPALIVE_AFTER_MS = 30_000;

export function createHttpServer(answer: RequestListener, pace: BodyPace): Server {
  const options = {
    headersTimeout: HEADERS_WITHIN_MS,
    connectionsCheckingInterval: CHECK_EVERY_MS,
    requestTimeout: 0,
    keepAliveTimeout: IDLE_MS,
    keepAlive: true,
    keepAliveInitialDelay: KEEPALIVE_AFTER_MS,
    requireHostHeader: false, // missed below, in a problem document
  };
  const answering = new WeakMap<Socket, ServerResponse>();
  const server = createServer(options, (request, response) => {
    answering.set(request.socket, response);
    watchBody(request, response, pace);
    const fault = hostFault(request);
    if (fault === null) answer(request, response);
    else respondProblem(response, problem(400, fault, request));
  });
  server.on("checkExpectation", (request: IncomingMessage, response: ServerResponse) => {
    const sentence = `the request expects ${JSON.stringify(request.headers.expect)}; only 100-continue is known`;
    respondProblem(response, problem(417, sentence, request));
  });
  server.on("connect", (_request: IncomingMessage, socket: Socket) => {
    writeProblem(socket, problem(400, "the orchestrator is no proxy: CONNECT is not answered"));
  });
  server.on("clientError", (error: ParserError, socket: Socket) => {
    const response = answering.get(socket);
    const isAnswering = response?.headersSent === true && !response.writableEnded;
    if (error.code === "ECONNRESET" || !socket.writable || isAnswering) socket.destroy();
    else writeProblem(socket, parserProblem(error));
  });
  return server;
}

type ParserError = Error & { code?: string; reason?: string };

function hostFault({ httpVersion, rawHeaders }: IncomingMessage): string | null {
  const hosts = rawHeaders.filter((name, index) => index % 2 === 0 && name.toLowerCase() === "host").length;
  if (hosts > 1) return `the request has ${hosts} Host headers; send one`;
  return hosts === 1 || httpVersion === "1.0" ? null : "the request has no Host header, which HTTP/1.1 requires";
}

function parserProblem({ code, reason, message }: ParserError): RawProblem {
  switch (code) {
    case "HPE_HEADER_OVERFLOW":
      return problem(431, "the request's headers are too large: together they may have 16 KiB");
    case "HPE_CHUNK_EXTENSIONS_OVERFLOW":
      return problem(413, "the extensions of the body's chunks are too large: leave them out");
    case "ERR_HTTP_REQUEST_TIMEOUT": {
      const sentence = `the request's headers did not arrive within ${HEADERS_WITHIN_MS} ms; send it again`;
      return { error: new LayercastError("request_timeout", sentence), status: 408, instance: "/" };
    }
    default:
      return problem(400, `what was sent is not an HTTP request: ${reason ?? message} (${code ?? "no code"})`);
  }
}

function problem(status: number, sentence: string, request?: IncomingMessage): RawProblem {
  const instance = request?.url?.split("?", 1)[0] ?? "/";
  return { error: new LayercastError("invalid_request", sentence), status, instance };
}
