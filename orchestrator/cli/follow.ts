// A reload's id -> its final record, showing progress on the way. Driven by the event stream; a stream that breaks is taken
// up again after the last event seen, so an orchestrator may restart meanwhile.

import { setTimeout as sleep } from "node:timers/promises";
import { LayercastError } from "../contract/errors.js";
import { type ReloadStateName, type ReloadView, TERMINAL_STATES } from "../contract/reload.js";
import type { Client } from "./http-client.js";
import {
  atEnd,
  changeLines,
  type Progress,
  progressLines,
  startProgress,
  stillLine,
  withEvent,
  withNote,
  withReload,
  withTimeOf,
} from "./progress.js";
import type { Terminal } from "./terminal.js";

export interface Screen {
  show(before: Progress, after: Progress): void;
  /** Leaves what is drawn where it stands. */
  close(): void;
}

export interface FollowOptions {
  signal: AbortSignal;
  /** How long nobody may answer before following is given up; the reload goes on either way. */
  patienceMs?: number;
}

const FIRST_RETRY_MS = 100;
const MAX_RETRY_MS = 2_000;
/** No event tells of a new reason to wait. */
const REREAD_MS = 1_000;

export async function followReload(
  client: Client,
  reload: ReloadView,
  screen: Screen,
  options: FollowOptions,
): Promise<ReloadView> {
  let progress = startProgress(reload);
  const update = (next: Progress) => {
    screen.show(progress, next);
    progress = next;
  };
  const reread = async (): Promise<void> => update(withReload(progress, await client.reload(reload.reload_id)));
  const timer = setInterval(() => void reread().catch(() => undefined), REREAD_MS);
  let lastEventId: string | null = null;
  let silentSince: number | null = null;
  let retryMs = FIRST_RETRY_MS;
  screen.show(progress, progress);
  try {
    while (true) {
      try {
        await reread();
        silentSince = null;
        if (isTerminal(progress.reload.state)) break;
        for await (const event of client.events(reload.reload_id, lastEventId, options.signal)) {
          lastEventId = event.id;
          retryMs = FIRST_RETRY_MS;
          update(withTimeOf(withEvent(progress, event.name, event.payload), event.id));
          if (event.name === "state") await reread();
          if (isTerminal(progress.state)) break;
        }
        if (isTerminal(progress.reload.state)) break;
      } catch (error) {
        options.signal.throwIfAborted();
        if (isUnknown(error)) throw recordLost(progress.reload);
        if (!(error instanceof LayercastError && error.retryable)) throw error;
        if (silentSince === null) {
          silentSince = performance.now();
          update(withNote(progress, `${error.code}: ${error.message}; trying again`));
        }
        if (performance.now() - silentSince > (options.patienceMs ?? 60_000)) throw lostSight(reload.reload_id, error);
      }
      await sleep(retryMs, null, { signal: options.signal });
      retryMs = Math.min(retryMs * 2, MAX_RETRY_MS);
    }
    update(atEnd(progress, progress.reload));
    return progress.reload;
  } finally {
    clearInterval(timer);
    screen.close();
  }
}

const isTerminal = (state: ReloadStateName) => TERMINAL_STATES.includes(state);

function isUnknown(error: unknown): boolean {
  return error instanceof LayercastError && error.code === "not_found";
}

/** Of a reload that was there: it cannot have gone in any other way while somebody follows it. */
function recordLost({ reload_id: id, fleet, state, weight_version, submission_id }: ReloadView): LayercastError {
  return new LayercastError(
    "record_lost",
    `Redis has lost the record of reload ${id}, which was ${state} when last seen: its data was removed, or Redis came back without it. ` +
      `Weight version ${weight_version} may be live, if its commit was decided before that; ranks tell Redis again what they hold. ` +
      `Look with \`layercast fleet ${fleet}\`: where it shows another weight version, or none, submit again.`,
    { reload: id, fleet, state, weight_version, submission_id },
  );
}

function lostSight(id: string, error: LayercastError): LayercastError {
  const next = `The reload may still be going on: follow it with \`layercast watch ${id}\``;
  return new LayercastError(error.code, `${error.message}. ${next}`, error.details, error);
}

export function screenOf(terminal: Terminal): Screen {
  return terminal.interactive ? liveScreen(terminal) : lineScreen(terminal);
}

/** A log that says nothing for longer looks like one of a process that hangs. */
const REPEAT_MS = 30_000;

/** A line a change, for logs and pipes. */
function lineScreen(terminal: Terminal): Screen {
  let latest: Progress | null = null;
  const timer = setInterval(() => {
    if (latest !== null) terminal.out(stillLine(latest));
  }, REPEAT_MS);
  return {
    show(before, after) {
      // How one stands that has ended is printed at the end, as after any other.
      const isOver = latest === null && isTerminal(after.state);
      const lines = isOver ? [] : changeLines(latest === null ? null : before, after);
      latest = after;
      if (lines.length === 0) return;
      timer.refresh();
      for (const line of lines) terminal.out(line);
    },
    close: () => clearInterval(timer),
  };
}

const REDRAW_MS = 100;

/**
 * Redraws in place, so that the time goes on between two events. It is the time since the reload was submitted, from the latest of what
 * events have told; an event that was long on its way does not set it back.
 */
function liveScreen(terminal: Terminal): Screen {
  let zero = performance.now();
  let drawn = 0;
  let latest: Progress | null = null;
  const redraw = () => {
    if (latest === null) return;
    const lines = progressLines(latest, performance.now() - zero, terminal.columns(), terminal.rows());
    const up = drawn === 0 ? "" : `\x1b[${drawn}A`;
    // Each line over the old one, then away with what is left below: clearing first would flicker.
    terminal.draw(`${up}\r${lines.map((line) => `${line}\x1b[K\n`).join("")}\x1b[J`);
    drawn = lines.length;
  };
  const timer = setInterval(redraw, REDRAW_MS);
  return {
    show: (_before, after) => {
      latest = after;
      zero = Math.min(zero, performance.now() - after.toldMs);
      redraw();
    },
    close: () => {
      clearInterval(timer);
      redraw();
    },
  };
}
