// Engines that compute with the ranks' arenas (P14): as a rank's worker tells the fleet of them, and as the API answers.

import { type Static, Type } from "typebox";
import { nullable, oneOf } from "./schema.js";

const ENGINE_STATES = ["waiting", "starting", "ready", "gone"] as const;
export type EngineStateName = (typeof ENGINE_STATES)[number];

export const AttachedEngineAnswer = Type.Object({
  id: Type.String(),
  name: Type.String(),
  version: Type.String(),
  state: oneOf(ENGINE_STATES, {
    description:
      "`waiting`: for weights, or for a commit's end; `starting`: it cannot be stopped yet, so no reload is decided; `ready`; " +
      "`gone`: shown for a minute",
  }),
  host: Type.String(),
  url: nullable(Type.String({ description: "Where it serves, if it was told" })),
  ranks: Type.Array(Type.Object({ replica: Type.Integer(), rank: Type.Integer(), pid: nullable(Type.Integer()) })),
  since: Type.String({ format: "date-time", description: "Since when it is in this state" }),
  last_stop: nullable(
    Type.Object({
      epoch: Type.Integer({ description: "That it went on with" }),
      weight_version: nullable(Type.String()),
      stop_ms: Type.Number({ description: "From the first word to stop to running again" }),
      still_ms: Type.Number({ description: "From the end of its last step to running again" }),
    }),
  ),
  trouble: nullable(Type.String({ description: "Why it stands still" })),
});
export type AttachedEngineView = Static<typeof AttachedEngineAnswer>;

/** What an engine last stood still for: from the first word to stop, and from the end of its last step, to running again. */
export interface EngineStopTimes {
  epoch: number;
  weightVersion: string | null;
  stopMs: number;
  stillMs: number;
}

/** An engine that computes with this rank's arena, as the rank's worker knows it (P14). */
export interface EngineReport {
  /** Equal on all ranks of the engine. */
  id: string;
  name: string;
  version: string;
  host: string;
  url: string | null;
  /** Of its process that has the arena mapped. */
  pid: number | null;
  state: EngineStateName;
  lastStop: EngineStopTimes | null;
  /** Why it stands still. */
  trouble: string | null;
}

export interface EngineLease extends EngineReport {
  /** In this state. */
  since: number;
}
