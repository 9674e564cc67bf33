// The table of reloads: the newest page is read again and again, older ones when asked for, with a filter or without. Pure.

import { byTime } from "./store.js";

export const PAGE_SIZE = 20;

/** `ids`: those to be shown, if they match what they are now. `cursor`: where the page after the last one begins. */
export function openList(filter = { state: "", fleet: "" }) {
  return { filter, ids: new Set(), cursor: null, pages: 0 };
}

export function listPath({ filter, cursor }) {
  const query = new URLSearchParams({ view: "summary", limit: String(PAGE_SIZE) });
  for (const [name, value] of Object.entries({ ...filter, cursor: cursor ?? "" }))
    if (value !== "") query.set(name, value);
  return `/v1/reloads?${query}`;
}

/** A page that the filter let through, which follows on what is there. */
export function takeOlder(list, { reloads, next_cursor }) {
  for (const { reload_id } of reloads) list.ids.add(reload_id);
  list.cursor = next_cursor;
  list.pages += 1;
}

/** The newest page without a filter. False: something may be missing between it and what is there, so begin again. */
export function takeNewest(list, { reloads, next_cursor }) {
  const isPlain = list.filter.state === "" && list.filter.fleet === "";
  if (isPlain && list.pages <= 1) {
    list.ids = new Set(reloads.map(({ reload_id }) => reload_id));
    list.cursor = next_cursor;
    list.pages = 1;
    return true;
  }
  const joins = next_cursor === null || !isPlain || reloads.some(({ reload_id }) => list.ids.has(reload_id));
  for (const { reload_id } of reloads) list.ids.add(reload_id);
  return joins;
}

export function shownReloads({ ids, filter }, entries) {
  const known = [...ids].flatMap((id) => entries.get(id)?.reload ?? []);
  const matches = ({ state, fleet }) =>
    (filter.state === "" || state === filter.state) && (filter.fleet === "" || fleet === filter.fleet);
  return known.filter(matches).sort(byTime);
}
