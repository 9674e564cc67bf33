// Plain values -> the page, in place: an element that stays keeps its identity, and with it selection, focus and scroll
// position. Text is only ever set as text, never parsed as markup.

const keys = new WeakMap();

/** Makes the children of `parent` those wanted (strings, or what `h` made). */
export function patchChildren(parent, wanted) {
  const old = [...parent.childNodes];
  const byKey = new Map(old.filter((child) => keys.has(child)).map((child) => [keys.get(child), child]));
  const unnamed = old.filter((child) => !keys.has(child));
  const matched = wanted.map((node) => {
    const found = node.key ? (byKey.get(node.key) ?? null) : takeFirst(unnamed, node);
    return found !== null && isOfKind(found, node) ? found : null;
  });
  const staying = new Set(matched);
  // What goes is removed first: to move what stays would lose its selection.
  for (const child of old) if (!staying.has(child)) child.remove();
  let next = parent.firstChild;
  for (const [index, node] of wanted.entries()) {
    const child = matched[index] ?? create(node);
    if (child === next) next = child.nextSibling;
    else parent.insertBefore(child, next);
    update(child, node);
  }
}

/** The first of the kind; those before it are passed over. */
function takeFirst(children, node) {
  const place = children.findIndex((child) => isOfKind(child, node));
  return place < 0 ? null : children.splice(0, place + 1)[place];
}

const TEXT_NODE = 3;

function isOfKind(child, node) {
  if (typeof node === "string") return child.nodeType === TEXT_NODE;
  return child.nodeName.toLowerCase() === node.tag;
}

function create(node) {
  if (typeof node === "string") return document.createTextNode(node);
  const made = document.createElement(node.tag);
  if (node.key !== null) keys.set(made, node.key);
  return made;
}

function update(child, node) {
  if (typeof node === "string") {
    if (child.data !== node) child.data = node;
    return;
  }
  for (const name of child.getAttributeNames()) {
    // Whoever reads opens and closes details.
    if (!(name in node.attributes) && name !== "open") child.removeAttribute(name);
  }
  for (const [name, value] of Object.entries(node.attributes)) {
    if (child.getAttribute(name) !== value) child.setAttribute(name, value);
  }
  patchChildren(child, node.children);
}
