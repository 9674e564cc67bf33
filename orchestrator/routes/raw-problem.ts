// Problem documents where there is no Fastify request: what the HTTP parser refuses, and bodies that do not arrive.

import { type ServerResponse, STATUS_CODES } from "node:http";
import type { Socket } from "node:net";
import type { LayercastError } from "../contract/errors.js";
import { PROBLEM_TYPE, problemOf } from "./problem.js";

/** How long a client may take to read its answer, and to stop sending, before its connection is destroyed. */
export const LINGER_MS = 2_000;

/** `instance`: the request's path, "/" when it is not known. */
export interface RawProblem {
  error: LayercastError;
  status: number;
  instance: string;
}

export function respondProblem(response: ServerResponse, problem: RawProblem): void {
  const { body, headers } = written(problem);
  response.writeHead(problem.status, headers).end(body);
}

/** For a connection that has no request to answer; it ends with this. */
export function writeProblem(socket: Socket, problem: RawProblem): void {
  const { body, headers } = written(problem);
  const lines = Object.entries({ ...headers, connection: "close" }).map(([name, value]) => `${name}: ${value}\r\n`);
  const status = `HTTP/1.1 ${problem.status} ${STATUS_CODES[problem.status]}\r\n`;
  socket.end(`${status}${lines.join("")}\r\n${body}`);
  setTimeout(() => socket.destroy(), LINGER_MS).unref();
}

function written({ error, status, instance }: RawProblem) {
  const body = JSON.stringify(problemOf(error, status, instance));
  const headers = { "content-type": PROBLEM_TYPE, "content-length": Buffer.byteLength(body) };
  return { body, headers };
}
