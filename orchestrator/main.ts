// The orchestrator process: config -> log -> server -> listen -> Redis, and the same backwards on SIGTERM or SIGINT. It listens
// before Redis is there, so that it can say that it lives, and what it waits for.

import { setTimeout as delay } from "node:timers/promises";
import type { Logger } from "pino";
import type { OrchestratorConfig } from "./host/config.js";
import { useFileMode } from "./host/file-mode.js";
import { createLog } from "./host/log.js";
import { explainStart, unsafeSettings, waitForRedis } from "./host/redis-start.js";
import { createMetrics } from "./metrics.js";
import { openReloads } from "./reloads/open-reloads.js";
import { buildServer } from "./server.js";

/** Long polls and event streams end at once; what is left then is a request that Redis or a file system keeps waiting. */
const CLOSE_TIMEOUT_MS = 9_000;

/** Resolves once it listens and drives reloads; the process ends on a signal. */
export async function runOrchestrator(config: OrchestratorConfig): Promise<void> {
  useFileMode(config.fileMode);
  const log = createLog({ ...config, name: "orchestrator" });
  if (config.sourceRoots.length === 0) {
    log.warn("no source root is configured (--source-root): every source will be refused");
  }
  const open: (() => Promise<void>)[] = [];
  closeOnSignal(log, open);
  try {
    const { url, begin } = await listen(config, log, open);
    process.stdout.write(`layercast orchestrator listening on ${url}\n`);
    const info = await waitForRedis(config.redisUrl, (error) => log.warn({ err: error }, "redis"));
    for (const words of unsafeSettings(info)) log.warn(words);
    await begin();
  } catch (error) {
    await closeAll(open);
    throw explainStart(config.redisUrl, error);
  }
}

/** Each thing opened is put on `open`, so that what is there is closed even if the next one fails. */
async function listen(config: OrchestratorConfig, log: Logger, open: (() => Promise<void>)[]) {
  const { redisUrl, spoolDirectory, hookHosts, token, host, port } = config;
  const sourceRoots = [...config.sourceRoots];
  const { reloads, begin, close } = await openReloads({ redisUrl, sourceRoots, spoolDirectory, hookHosts, log });
  open.push(close);
  const server = await buildServer({ reloads, log, metrics: createMetrics(reloads), token });
  open.push(() => server.close());
  return { url: await server.listen({ host, port }), begin };
}

async function closeAll(open: (() => Promise<void>)[]): Promise<void> {
  for (const close of open.splice(0).reverse()) await close();
}

function closeOnSignal(log: Logger, open: (() => Promise<void>)[]): void {
  let closing = false;
  const onSignal = (signal: NodeJS.Signals) => {
    // A second signal means that whoever sent the first will not wait.
    if (closing) return void leave(1);
    closing = true;
    log.info({ signal }, "closing");
    setTimeout(() => {
      log.error({ timeoutMs: CLOSE_TIMEOUT_MS }, "closing took too long: leaving as things are");
      void leave(1);
    }, CLOSE_TIMEOUT_MS).unref();
    closeAll(open).then(
      () => leave(0),
      (error: unknown) => {
        log.error({ err: error }, "closing failed");
        return leave(1);
      },
    );
  };
  for (const signal of ["SIGTERM", "SIGINT"] as const) process.on(signal, onSignal);
}

const STUCK_AFTER_MS = 1_000;
const POLL_MS = 20;

/** process.exit() waits for the threads of file system calls and lookups, which may never return: then a signal ends it. */
async function leave(code: number): Promise<void> {
  const until = performance.now() + STUCK_AFTER_MS;
  while (isThreadBusy()) {
    if (performance.now() > until) process.kill(process.pid, "SIGKILL");
    await delay(POLL_MS);
  }
  process.exit(code);
}

function isThreadBusy(): boolean {
  return process.getActiveResourcesInfo().some((name) => /^(FSReq|FileHandle|GetAddrInfo)/.test(name));
}
