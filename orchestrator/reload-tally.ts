// Reload records -> which reloads were submitted and which ended since the last look, each named once. Any orchestrator or
// worker may be the one that ends a reload, so nobody is told: the records are read.

import { LayercastError } from "./contract/errors.js";
import { type ReloadView, TERMINAL_STATES } from "./contract/reload.js";
import type { Reloads } from "./reloads/reloads.js";

export type TalliedReloads = Pick<Reloads, "list" | "get" | "fleets">;

export interface Tally {
  submitted: ReloadView[];
  ended: ReloadView[];
}

const PAGE = 200;
/** Looks that are so far apart that more were submitted between them miss the oldest. */
const MAX_PAGES = 10;

/** What had ended before this call is history: the first look does not name it. */
export function openReloadTally(reloads: TalliedReloads, now: () => number = Date.now): () => Promise<Tally> {
  const openedAt = now();
  let newest: string | null = null;
  let unfinished = new Set<string>();

  return async () => {
    if (newest === null) unfinished = new Set(await unfinishedIds(reloads));
    const found = await listSince(reloads, newest, openedAt);
    const listed = new Set(found.map(({ reload_id }) => reload_id));
    const before = await readReloads(
      reloads,
      [...unfinished].filter((id) => !listed.has(id)),
    );
    const looked = [...found, ...before];
    newest = found[0]?.reload_id ?? newest;
    unfinished = new Set(looked.filter((reload) => !hasEnded(reload)).map((reload) => reload.reload_id));
    return {
      submitted: found.filter((reload) => Date.parse(reload.created_at) >= openedAt),
      ended: looked.filter((reload) => hasEnded(reload) && Date.parse(reload.finished_at ?? "") >= openedAt),
    };
  };
}

function hasEnded(reload: ReloadView): boolean {
  return TERMINAL_STATES.includes(reload.state);
}

/** Submitted before the first look, and to end after it. */
async function unfinishedIds({ fleets }: TalliedReloads): Promise<string[]> {
  return (await fleets()).flatMap(({ active_reload_id, queued_reload_ids }) => [
    ...(active_reload_id === null ? [] : [active_reload_id]),
    ...queued_reload_ids,
  ]);
}

/** Newest first, down to the one named, or to those that were submitted before `openedAt`. */
async function listSince({ list }: TalliedReloads, known: string | null, openedAt: number): Promise<ReloadView[]> {
  const found: ReloadView[] = [];
  let cursor: string | null = null;
  for (let page = 0; page < MAX_PAGES; page++) {
    const { reloads, next_cursor } = await list({ fleet: null, state: null, limit: PAGE, cursor, view: "full" });
    const end = reloads.findIndex(
      ({ reload_id, created_at }) => reload_id === known || Date.parse(created_at) < openedAt,
    );
    found.push(...(end < 0 ? reloads : reloads.slice(0, end)));
    if (end >= 0 || next_cursor === null) break;
    cursor = next_cursor;
  }
  return found;
}

/** Those that are still kept. */
export async function readReloads({ get }: TalliedReloads, ids: string[]): Promise<ReloadView[]> {
  const never = new AbortController().signal;
  const read = await Promise.all(
    ids.map((id) =>
      get(id, 0, never).catch((error: unknown) => {
        if (error instanceof LayercastError && error.code === "not_found") return null;
        throw error;
      }),
    ),
  );
  return read.filter((reload) => reload !== null);
}
