// A rank's life in its fleet, in the order that P8 wants: registered, so that nobody routes to it unseen; listening; caught
// up; and only then taking jobs.

import { LayercastError } from "../orchestrator/contract/errors.js";
import type { FleetMessage } from "../orchestrator/contract/fleet-message.js";
import { catchUp } from "./catch-up.js";
import { beat, joinAtStart } from "./heartbeat.js";
import { onFleetMessage } from "./on-fleet-message.js";
import type { Rank } from "./rank.js";

/** What drives a rank from outside. */
export interface RankHost {
  /** Calls again and again, until the returned function is called. */
  every(ms: number, call: () => void): () => void;
  delay(ms: number): Promise<void>;
  /** The fleet's messages, as good as they come. */
  onMessage(handle: (message: FleetMessage) => void): Promise<void>;
  /** The process must end. */
  onFatal(reason: string): void;
}

const HEARTBEAT_MS = 1_000;

/**
 * Resolves when the rank may take jobs, with what ends its heartbeat. Throws `invalid_request` where another worker holds the rank
 * and is alive, unless this one is to take it over.
 */
export async function serve(
  rank: Rank,
  takeOver: boolean,
  { every, delay, onMessage, onFatal }: RankHost,
): Promise<() => void> {
  const warn = (what: string) => (error: unknown) => rank.log.warn({ err: error }, what);
  await joinAtStart(rank, takeOver, delay);
  const stop = every(HEARTBEAT_MS, () => {
    beat(rank).catch((error: unknown) => {
      if (error instanceof LayercastError && error.code === "rank_lost") onFatal(error.message);
      else warn("the heartbeat failed")(error);
    });
  });
  await onMessage((message) => {
    onFleetMessage(rank, message).catch(warn("handling a message failed; jobs will do what it asked for"));
  });
  await catchUp(rank);
  return stop;
}
