import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { FakeElement, type FakeText, fakeDocument } from "./fake-dom.js";
import { dashboard } from "./modules.js";

const { h } = await dashboard("nodes.js");
const { patchChildren } = await dashboard("patch.js");

let root: FakeElement;
beforeEach(() => {
  vi.stubGlobal("document", fakeDocument);
  root = new FakeElement("tbody");
});
afterEach(() => {
  vi.unstubAllGlobals();
});

const row = (id: string, state = "loading") => h("tr", { key: id }, h("td", {}, id), h("td", { class: state }, state));
const rows = () => root.childNodes as FakeElement[];

describe("drawing again", () => {
  it("what has not changed touches nothing, so that a selection stays", () => {
    patchChildren(root, [row("a"), row("b")]);
    const [first] = rows();
    const [id] = (first?.childNodes ?? []) as FakeElement[];
    const [text] = (id?.childNodes ?? []) as FakeText[];
    patchChildren(root, [row("a"), row("b", "committed")]);
    expect(rows()[0]).toBe(first);
    expect(text?.writes).toBe(0);
    expect(rows().map(({ moves }) => moves)).toEqual([1, 1]);
    expect(root.text).toBe("aloadingbcommitted");
    const [, state] = (rows()[1]?.childNodes ?? []) as FakeElement[];
    expect(state?.getAttribute("class")).toBe("committed");
  });

  it("a row that arrives before the others, and one that leaves, move none of those that stay", () => {
    patchChildren(root, [row("a"), row("b"), row("c")]);
    const [, b, c] = rows();
    patchChildren(root, [row("new"), row("b"), row("c")]);
    expect(rows().slice(1)).toEqual([b, c]);
    expect([b?.moves, c?.moves]).toEqual([1, 1]);
    expect(root.text).toBe("newloadingbloadingcloading");
  });

  it("orders as wanted, whatever was there", () => {
    patchChildren(
      root,
      ["a", "b", "c"].map((id) => row(id)),
    );
    patchChildren(
      root,
      ["c", "x", "a"].map((id) => row(id)),
    );
    expect(root.text).toBe("cloadingxloadingaloading");
    patchChildren(root, []);
    expect(root.childNodes).toEqual([]);
  });

  it("a line that comes between others without names leaves them right", () => {
    patchChildren(root, [h("p", {}, "one"), h("ul", {}), h("p", {}, "two")]);
    patchChildren(root, [h("p", {}, "one"), h("p", {}, "new"), h("ul", {}), h("p", {}, "two")]);
    expect(rows().map((element) => [element.nodeName, element.text])).toEqual([
      ["P", "one"],
      ["P", "new"],
      ["UL", ""],
      ["P", "two"],
    ]);
  });

  it("details that a reader opened stay open; what looks like markup is text", () => {
    const drawn = () => [h("details", { class: "x" }, "<img src=x onerror=alert(1)>")];
    patchChildren(root, drawn());
    rows()[0]?.setAttribute("open", "");
    patchChildren(root, drawn());
    expect(rows()[0]?.getAttribute("open")).toBe("");
    expect(rows()[0]?.childNodes.map(({ nodeName }) => nodeName)).toEqual(["#text"]);
  });
});
