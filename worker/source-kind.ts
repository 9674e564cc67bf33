// What the kinds of source have of their own. Opening and closing staging, what is written there, and the way to a token are the
// same for all (load-reload.ts).

import type { ProgramSource } from "../orchestrator/program/make-program.js";
import type { CellWrite } from "./intake/cells.js";
import type { Intake } from "./intake/intake.js";
import type { Loading } from "./loading.js";

export interface SourceKind {
  /** The same loading, with the source's files as this host has them. */
  onThisHost(loading: Loading): Promise<Loading>;
  /** Throws when the source is not what was planned. Staging may be filled meanwhile. */
  verify(loading: Loading): Promise<void>;
  /** Writes into open staging all that it lacks and that does not wait for the rank barrier. */
  takeAll(loading: Loading, intake: Intake): Promise<void>;
  /** Where the rows are that waited for it. */
  rest(loading: Loading, intake: Intake): ProgramSource<CellWrite>;
  /** Its bytes are live: tells who pins files. */
  becameLive(loading: Loading): void;
  /** Staging is closed. */
  closed(loading: Loading, intake: Intake): void;
}
