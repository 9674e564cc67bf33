// What the page's title and its live region say. Pure.

import { isEnded, shownCards, shownFleets } from "./store.js";

const NAME = "Layercast";

/** Of the reload whose page it is, else of what runs, else of what is wrong. */
export function titleOf(store, pageId) {
  const entry = pageId === null ? undefined : store.entries.get(pageId);
  if (entry !== undefined) return `${entry.reload.state} · ${entry.reload.weight_version} · ${NAME}`;
  const running = shownCards(store).find(({ reload }) => !isEnded(reload.state));
  if (running !== undefined) return `${running.reload.state} · ${NAME}`;
  const fleets = shownFleets(store);
  if (fleets.some(({ torn }) => torn)) return `torn · ${NAME}`;
  if (fleets.some(({ routable }) => !routable)) return `not routable · ${NAME}`;
  return NAME;
}

/** What can change and is worth saying, by its name. */
export function standing(store) {
  const reloads = [...store.entries.values()].map(({ reload }) => [
    `Reload ${reload.reload_id} to ${reload.weight_version}`,
    reload.error === null ? reload.state : `${reload.state}: ${reload.error.code}`,
  ]);
  const fleets = shownFleets(store).map((fleet) => {
    const how = fleet.torn ? "torn" : fleet.routable ? "routable" : "not routable";
    const lost = fleet.ranks.filter(({ alive }) => !alive).length;
    const gone = fleet.attached_engines.filter(({ state }) => state === "gone").length;
    const facts = [how, lost === 0 ? "" : `${lost} of its ranks lost`, gone === 0 ? "" : `${gone} of its engines gone`];
    return [`Fleet ${fleet.fleet}`, facts.filter((fact) => fact !== "").join(", ")];
  });
  return new Map([...reloads, ...fleets]);
}

const SAID_AT_ONCE = 3;

/** Sentences for a screen reader; what was there at the start is no news, and old reloads that are listed are none. */
export function news(before, after) {
  const changed = [...after].filter(([name, state]) => before.has(name) && before.get(name) !== state);
  return changed.slice(-SAID_AT_ONCE).map(([name, state]) => `${name}: ${state}.`);
}
