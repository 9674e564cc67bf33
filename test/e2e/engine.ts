// An engine as a pause and a resume hook see it: a small HTTP server that writes down who called when, and fails, hangs or
// takes its time when it is told to.

import { createServer, type IncomingMessage } from "node:http";
import type { AddressInfo } from "node:net";
import { setTimeout as delay } from "node:timers/promises";

export interface EngineCall {
  what: "pause" | "resume";
  /** performance.now() when the call came, and when it was answered; null: it was not. */
  at: number;
  answeredAt: number | null;
  reload: string;
  epoch: number;
}

/** What the next calls of a route meet, one each; then they work at once. */
export type Behaviour = { status: number } | { hangs: true } | { slowMs: number };

export interface Engine {
  url: string;
  calls: EngineCall[];
  /** For the next call of the route that has none yet. */
  next(what: EngineCall["what"], behaviour: Behaviour): void;
  /** Whether it stands still: paused and not resumed since. */
  paused(): boolean;
  /** Forgets calls and what was to come. */
  reset(): void;
  close(): Promise<void>;
}

export async function startEngine(): Promise<Engine> {
  const calls: EngineCall[] = [];
  const coming = { pause: [] as Behaviour[], resume: [] as Behaviour[] };
  let paused = false;
  const server = createServer((request, response) => {
    const what = request.url === "/pause" ? "pause" : "resume";
    const call = callOf(what, request);
    calls.push(call);
    const behaviour = coming[what].shift() ?? { slowMs: 0 };
    if ("hangs" in behaviour) return;
    const answer = (status: number) => {
      if (status === 200) paused = what === "pause";
      call.answeredAt = performance.now();
      response.writeHead(status).end(status === 200 ? "" : "told to fail");
    };
    if ("status" in behaviour) answer(behaviour.status);
    else void delay(behaviour.slowMs).then(() => answer(200));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    calls,
    next: (what, behaviour) => void coming[what].push(behaviour),
    paused: () => paused,
    reset() {
      paused = false;
      for (const list of [calls, coming.pause, coming.resume]) list.splice(0);
    },
    async close() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

function callOf(what: EngineCall["what"], { headers }: IncomingMessage): EngineCall {
  const reload = String(headers["layercast-reload"]);
  return { what, at: performance.now(), answeredAt: null, reload, epoch: Number(headers["layercast-epoch"]) };
}
