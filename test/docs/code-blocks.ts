// The code of a page that tells how to change the program: each block's first line names its file, and the block is that file
// whole, or a `diff` of pieces that must stand in it exactly once, divided by lines of `@@`.

import type { Patch } from "../compile.js";

export interface NewFile {
  file: string;
  text: string;
}

export interface CodeBlocks {
  files: NewFile[];
  patches: Patch[];
}

export function codeBlocksOf(page: string): CodeBlocks {
  const blocks = [...page.matchAll(/^```(\w+) (\S+)\n(.*?)^```$/gms)];
  const of = (isDiff: boolean) => blocks.filter(([, language]) => (language === "diff") === isDiff);
  return {
    files: of(false).map(([, , file = "", text = ""]) => ({ file, text })),
    patches: of(true).flatMap(([, , file = "", text = ""]) =>
      text.split(/^@@\n/m).map((piece) => patchOf(file, piece)),
    ),
  };
}

function patchOf(file: string, piece: string): Patch {
  const lines = piece.split("\n").filter((line) => line !== "");
  const side = (dropped: string) =>
    lines
      .filter((line) => !line.startsWith(dropped))
      .map((line) => `${line.slice(1)}\n`)
      .join("");
  return { file, find: side("+"), put: side("-") };
}
