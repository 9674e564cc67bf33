// What is published when a fleet changes: a hint, which says enough of the new state that most who hear of it need not read it.

import { type Static, Type } from "typebox";
import { Check } from "typebox/value";

const HeldMessage = Type.Object({
  reload: Type.String(),
  content: Type.String(),
  weightVersion: Type.String(),
  epoch: Type.Number(),
  layoutDigest: Type.String(),
});

const FleetMessage = Type.Object({
  fleet: Type.String(),
  version: Type.Number(),
  /** Whether the active reload waits for an orchestrator to do something. */
  waits: Type.Boolean(),
  active: Type.Union([Type.String(), Type.Null()]),
  /** What prepared ranks make live now: the active reload's weights, once nothing can take them back (P10). */
  swapTo: Type.Union([HeldMessage, Type.Null()]),
});
export type FleetMessage = Static<typeof FleetMessage>;

/** Null for what is no such message: whoever can publish must not be able to end a process. */
export function parseFleetMessage(text: string): FleetMessage | null {
  try {
    const message: unknown = JSON.parse(text);
    return Check(FleetMessage, message) ? message : null;
  } catch {
    return null;
  }
}
