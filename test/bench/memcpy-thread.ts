// One thread of the parallel memcpy: says when its memory is there, then copies all of it at each message.

import { parentPort, workerData } from "node:worker_threads";

const { bytes } = workerData as { bytes: number };
const from = new Uint8Array(bytes).fill(1);
const to = new Uint8Array(bytes).fill(2);

parentPort?.on("message", () => {
  to.set(from);
  parentPort?.postMessage("copied");
});
parentPort?.postMessage("ready");
