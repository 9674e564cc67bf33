// The `layercast worker` command: one rank until it is told to stop, or must.

import { loadNative } from "../native/native.js";
import { readLogLevel } from "../orchestrator/host/config.js";
import { createLog } from "../orchestrator/host/log.js";
import { explainStart, waitForRedis } from "../orchestrator/host/redis-start.js";
import { requireDevice } from "./open-device.js";
import { openRegisteredFile } from "./registered-file.js";
import { type RunningWorker, startWorker, type WorkerOptions } from "./worker.js";

const DRAIN_DEADLINE_MS = 30_000;

export async function runWorker(
  options: Omit<WorkerOptions, "log" | "onFatal" | "device" | "registered"> & { device: string },
): Promise<void> {
  const log = createLog({
    name: "worker",
    logLevel: readLogLevel(process.env),
    redisUrl: options.redisUrl,
    token: null,
  });
  let worker: RunningWorker | null = null;
  let stopping = false;

  const stop = (signal: string) => {
    if (stopping) return;
    stopping = true;
    log.info({ signal }, "stopping");
    setTimeout(() => process.exit(1), DRAIN_DEADLINE_MS).unref();
    (worker?.stop() ?? Promise.resolve()).then(
      () => process.exit(0),
      (error: unknown) => {
        log.error({ err: error }, "stopping failed");
        process.exit(1);
      },
    );
  };
  process.once("SIGTERM", () => stop("SIGTERM"));
  process.once("SIGINT", () => stop("SIGINT"));

  const onFatal = (reason: string) => {
    log.fatal(reason);
    process.exit(1);
  };
  const { redisUrl } = options;
  const registered = openRegisteredFile(options);
  // What a process before has left would be taken for this one's while it waits for Redis.
  registered.remove();
  try {
    const device = requireDevice(loadNative(), options.device);
    await waitForRedis(redisUrl, (error) => log.warn({ err: error }, "redis"));
    worker = await startWorker({ ...options, device, registered, log, onFatal });
  } catch (error) {
    throw explainStart(redisUrl, error);
  }
}
