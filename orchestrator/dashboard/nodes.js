// What is to be drawn as plain values, and numbers as words. Pure: patch.js makes the page's elements of them.

/** Attributes that are null or empty are left out, and children that are null; `key` names a child among its siblings. */
export function h(tag, { key = null, ...attributes } = {}, ...children) {
  const said = Object.entries(attributes).filter(([, value]) => value !== null && value !== "");
  const shown = children.flat(Infinity).filter((child) => child !== null);
  return { tag, key, attributes: Object.fromEntries(said), children: shown.map(asNode) };
}

const asNode = (child) => (typeof child === "object" ? child : String(child));

export const cell = (content, className = "") => h("td", { class: className }, content ?? "–");
export const heading = (content, className = "") => h("th", { scope: "col", class: className }, content);
export const pill = (text, className) => h("span", { class: `pill ${className}` }, text);
export const line = (text, className) => h("p", { class: className }, text);

const STATE_CLASS = { committed: "good", failed: "bad", cancelled: "warn", superseded: "quiet", queued: "quiet" };
export const statePill = (state) => pill(state, STATE_CLASS[state] ?? "busy");

export function table(label, headings, rows) {
  const head = h("thead", {}, h("tr", {}, headings));
  // A region that scrolls is a tab stop, or keys could not scroll it.
  const region = { class: "scroll", role: "region", tabindex: "0", "aria-label": label };
  return h("div", region, h("table", {}, head, h("tbody", {}, rows)));
}

/** An id that leads to its reload's page, and can be copied. */
export function reloadLink(id) {
  return h("span", { class: "id" }, h("a", { href: pageOf(id) }, h("code", {}, id)), copyButton(id));
}

const PAGE = "#/reloads/";
export const pageOf = (id) => `${PAGE}${encodeURIComponent(id)}`;

/** The id of the reload whose page a location's hash names; null: the overview. */
export function reloadOfHash(hash) {
  if (!hash.startsWith(PAGE) || hash === PAGE) return null;
  try {
    return decodeURIComponent(hash.slice(PAGE.length));
  } catch {
    return null;
  }
}

export function copyButton(text) {
  return h("button", { type: "button", class: "copy", "data-copy": text, "aria-label": `Copy ${text}` }, "copy");
}

export function progressBar(done, total, label) {
  const value = String(Math.min(done, total));
  return h("progress", { value, max: String(Math.max(total, 1)), "aria-label": label, title: label });
}

export function milliseconds(ms) {
  if (ms === null || ms === undefined) return "–";
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`;
}

export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const step = count < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(count) / 10));
  return `${(count / 1024 ** step).toFixed(step === 0 ? 0 : 1)} ${units[step]}`;
}

export function time(timestamp) {
  const at = new Date(timestamp);
  const today = at.toDateString() === new Date().toDateString();
  const words = today ? at.toLocaleTimeString() : at.toLocaleString();
  return h("time", { datetime: at.toISOString() }, words);
}

export const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
