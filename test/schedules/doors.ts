// What the world keeps of the links between attached engines and workers.

import type { LinkId } from "../../worker/engines/leases.js";
import type { LinkServerOptions } from "../../worker/engines/link-server.js";
import type { WorkerMessage } from "../../worker/engines/messages.js";
import type { Process } from "./world.js";

/** Where a worker can be called. */
export interface Door {
  worker: Process;
  onMessage: LinkServerOptions["onMessage"];
  onEnd: LinkServerOptions["onEnd"];
  callers: Map<LinkId, Caller>;
  links: number;
}

/** An engine's end of a link; what is sent comes in the order in which it was sent. */
export interface Caller {
  engine: Process;
  coming: WorkerMessage[];
  hear(message: WorkerMessage): void;
  lost(): void;
}

export interface AttachedEngine {
  process: Process;
  replica: number;
  /** It holds its locks, and computes. */
  isRunning: boolean;
  /** Let in, and not to be stopped yet. */
  isStarting: boolean;
}
