// Who may read weights on a host: the owner and his group, unless told otherwise.

import { chmodSync, mkdirSync, mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import {
  directoryModeOf,
  FILE_MODE,
  parseFileMode,
  spreadFileMode,
  useFileMode,
} from "../../orchestrator/host/file-mode.js";
import { keepFile } from "../../orchestrator/reloads/push/keep-file.js";
import { buildSafetensors } from "../checkpoint/build-safetensors.js";

const modeOf = (path: string) => (statSync(path).mode & 0o777).toString(8);

let scratch: string;
let before: number;
beforeEach(() => {
  before = process.umask();
  scratch = mkdtempSync(join(tmpdir(), "layercast-mode-"));
});
afterEach(() => {
  process.umask(before);
  rmSync(scratch, { recursive: true });
});

describe("a file mode", () => {
  it.each([
    [FILE_MODE.default, "750"],
    ["600", "700"],
    ["660", "770"],
    ["644", "755"],
    ["666", "777"],
  ])("%s lets directories be entered by whoever may read: %s", (file, directory) => {
    expect(directoryModeOf(parseFileMode(file)).toString(8)).toBe(directory);
    useFileMode(file);
    writeFileSync(join(scratch, "file"), "");
    mkdirSync(join(scratch, "directory"));
    expect([modeOf(join(scratch, "file")), modeOf(join(scratch, "directory"))]).toEqual([file, directory]);
  });

  it.each(["", "0640", "64", "400", "755", "641", "620", "rw-r-----", "888"])("is not %j", (text) => {
    expect(() => parseFileMode(text)).toThrow(expect.objectContaining({ code: "invalid_request" }));
  });
});

it("files and directories of a rank from before get the mode too", () => {
  const directory = join(scratch, "default", "replica-0", "rank-0");
  mkdirSync(join(directory, "exports"), { recursive: true });
  writeFileSync(join(directory, "live.safetensors"), "");
  const own = [join(scratch, "default"), join(scratch, "default", "replica-0"), directory, join(directory, "exports")];
  for (const one of own) chmodSync(one, 0o755);
  chmodSync(join(directory, "live.safetensors"), 0o644);
  useFileMode("640");
  const runDirectory = modeOf(scratch);
  spreadFileMode(directory);
  expect([...own, join(directory, "live.safetensors")].map(modeOf)).toEqual(["750", "750", "750", "750", "640"]);
  expect(modeOf(scratch)).toBe(runDirectory);
});

it("a bucket that is copied into the spool has the spool's mode, not the trainer's", async () => {
  const from = join(scratch, "bucket");
  writeFileSync(from, buildSafetensors({ a: { dtype: "U8", shape: [1] } }));
  chmodSync(from, 0o666);
  useFileMode("640");
  await keepFile(scratch, from, join(scratch, "kept"), false);
  expect(modeOf(join(scratch, "kept"))).toBe("640");
});
