// As much of a document as patch.js touches.

export class FakeText {
  readonly nodeType = 3;
  readonly nodeName = "#text";
  parent: FakeElement | null = null;
  writes = 0;
  #data: string;

  constructor(data: string) {
    this.#data = data;
  }
  get data(): string {
    return this.#data;
  }
  set data(data: string) {
    this.writes += 1;
    this.#data = data;
  }
  get nextSibling(): FakeNode | null {
    return siblingOf(this);
  }
  remove(): void {
    takeOut(this);
  }
}

export class FakeElement {
  readonly nodeType = 1;
  readonly nodeName: string;
  parent: FakeElement | null = null;
  childNodes: FakeNode[] = [];
  /** How often it was put into its parent. */
  moves = 0;
  readonly #attributes = new Map<string, string>();

  constructor(tag: string) {
    this.nodeName = tag.toUpperCase();
  }
  get firstChild(): FakeNode | null {
    return this.childNodes[0] ?? null;
  }
  get nextSibling(): FakeNode | null {
    return siblingOf(this);
  }
  getAttributeNames = () => [...this.#attributes.keys()];
  getAttribute = (name: string) => this.#attributes.get(name) ?? null;
  setAttribute = (name: string, value: string) => void this.#attributes.set(name, value);
  removeAttribute = (name: string) => void this.#attributes.delete(name);
  remove(): void {
    takeOut(this);
  }
  insertBefore(child: FakeNode, next: FakeNode | null): void {
    takeOut(child);
    const place = next === null ? this.childNodes.length : this.childNodes.indexOf(next);
    this.childNodes.splice(place, 0, child);
    child.parent = this;
    if (child instanceof FakeElement) child.moves += 1;
  }
  get text(): string {
    return this.childNodes.map((child) => (child instanceof FakeText ? child.data : child.text)).join("");
  }
}

export type FakeNode = FakeText | FakeElement;

function siblingOf(node: FakeNode): FakeNode | null {
  const all = node.parent?.childNodes ?? [];
  return all[all.indexOf(node) + 1] ?? null;
}

function takeOut(node: FakeNode): void {
  const all = node.parent?.childNodes;
  all?.splice(all.indexOf(node), 1);
  node.parent = null;
}

export const fakeDocument = {
  createElement: (tag: string) => new FakeElement(tag),
  createTextNode: (data: string) => new FakeText(data),
};
