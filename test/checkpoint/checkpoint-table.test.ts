import { spawnSync } from "node:child_process";
import {
  appendFile,
  copyFile,
  cp,
  mkdir,
  mkdtemp,
  realpath,
  rename,
  rm,
  symlink,
  truncate,
  utimes,
  writeFile,
} from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import {
  describeFile,
  headerBytesOf,
  readCheckpointFile,
  verifyFile,
} from "../../orchestrator/checkpoint/checkpoint-file.js";
import { readCheckpointTable } from "../../orchestrator/checkpoint/checkpoint-table.js";
import { resolveRoots } from "../../orchestrator/checkpoint/source-path.js";
import { type BuiltTensor, buildSafetensors, withHeader } from "./build-safetensors.js";
import { expectLayercastRejection } from "./expect-error.js";

const FIXTURES = path.resolve(import.meta.dirname, "../fixtures/checkpoints");
const CONFIG = JSON.stringify({ architectures: ["LlamaForCausalLM"], model_type: "llama" });
const ONE: BuiltTensor = { dtype: "BF16", shape: [2] };

let root: string;
let directory: string;
const read = (uri = directory, allowedRoots = [root]) => readCheckpointTable(uri, { allowedRoots });
const put = (name: string, content: string | Uint8Array) => writeFile(path.join(directory, name), content);
const index = (weightMap: unknown) => JSON.stringify({ metadata: { total_size: 1.5 }, weight_map: weightMap });

beforeEach(async () => {
  root = await realpath(await mkdtemp(path.join(os.tmpdir(), "layercast-table-")));
  directory = path.join(root, "ckpt");
  await mkdir(directory);
  await put("config.json", CONFIG);
});
afterEach(() => rm(root, { recursive: true }));

describe("readCheckpointTable", () => {
  it("reads the shipped checkpoints: every tensor the index names, each where its bytes are", async () => {
    for (const name of ["tiny-qwen3/v1", "tiny-llama/v1", "edge-llama/v1"]) {
      const { table, config } = await read(path.join(FIXTURES, name), [FIXTURES]);
      expect(table.files).toHaveLength(3);
      expect([...table.tensors.keys()]).toEqual([...table.tensors.keys()].sort());
      expect(config.architecture).toMatch(/ForCausalLM$/);
      for (const { offset, file } of table.tensors.values())
        expect(offset).toBeLessThan(table.files[file]?.sizeBytes ?? 0);
    }
  });

  it("joins all safetensors files of a directory without an index, sorted by name", async () => {
    await put("b.safetensors", buildSafetensors({ "w.2": ONE }));
    await put("a.safetensors", buildSafetensors({ "w.1": ONE, "w.3": ONE }));
    await put("notes.txt", "not weights");
    const { table } = await read();
    expect(table.files.map((file) => path.basename(file.path))).toEqual(["a.safetensors", "b.safetensors"]);
    expect([...table.tensors.values()].map(({ name, file }) => [name, file])).toEqual([
      ["w.1", 0],
      ["w.2", 1],
      ["w.3", 0],
    ]);
  });

  it("with an index reads the files it names and no others, and keeps what it does not name", async () => {
    await put("a.safetensors", buildSafetensors({ "w.1": ONE, "w.extra": ONE }));
    await put("consolidated.safetensors", buildSafetensors({ other: ONE }));
    await put("model.safetensors.index.json", index({ "w.1": "a.safetensors" }));
    expect([...(await read()).table.tensors.keys()]).toEqual(["w.1", "w.extra"]);
  });

  it("takes a file:// URI, and follows links that stay inside the roots", async () => {
    await put("real.safetensors", buildSafetensors({ w: ONE }));
    const linked = path.join(root, "linked step");
    await mkdir(linked);
    await symlink(path.join(directory, "real.safetensors"), path.join(linked, "model.safetensors"));
    await symlink(path.join(directory, "config.json"), path.join(linked, "config.json"));
    const { table } = await read(pathToFileURL(linked).href);
    expect(table.files[0]?.path).toBe(path.join(directory, "real.safetensors"));
  });

  it("refuses what is no local directory by name as invalid_request", async () => {
    for (const uri of ["ckpt", "s3://x/y", "file://host/ckpt", "https://x/y", "/a\0b", "file:///a%00b", ""])
      await expectLayercastRejection(read(uri), "invalid_request", /absolute path or a file:\/\//);
  });

  it("says of a hub's or an object store's name that it is to be downloaded first, and how", async () => {
    for (const [uri, how] of [
      ["hf://Qwen/Qwen3-0.6B", /hf download Qwen\/Qwen3-0\.6B --local-dir/],
      ["Qwen/Qwen3-0.6B", /hf download Qwen\/Qwen3-0\.6B --local-dir/],
      ["s3://bucket/Qwen/step-1", /Download it first and give the directory/],
      ["gs://b/c", /nothing is downloaded/],
    ] as const)
      await expectLayercastRejection(read(uri), "invalid_request", how);
    await expectLayercastRejection(read("ckpt"), "invalid_request", /Give the directory's absolute path/);
  });

  it("refuses a path outside the roots the same way whether it exists or not", async () => {
    const inner = path.join(root, "allowed");
    await mkdir(inner);
    for (const uri of [directory, `${inner}/../ckpt`, path.join(root, "nothing"), `${inner}-not`])
      await expectLayercastRejection(read(uri, [inner]), "source_not_allowed", /outside the directories/);
    await expectLayercastRejection(read(path.join(inner, "nothing"), [inner]), "source_not_found", /ENOENT/);
    await expectLayercastRejection(read(directory, []), "source_not_allowed", /\(none\)/);
  });

  it("refuses links that lead out of the roots: the directory, a weight file, the config", async () => {
    const inner = path.join(root, "allowed");
    await put("a.safetensors", buildSafetensors({ w: ONE }));
    await mkdir(inner);
    await symlink(directory, path.join(inner, "out"));
    await expectLayercastRejection(
      read(path.join(inner, "out"), [inner]),
      "source_not_allowed",
      /out is a symbolic link/,
    );
    for (const name of ["a.safetensors", "config.json"]) {
      const mixed = path.join(inner, `mixed-${name}`);
      await cp(directory, mixed, { recursive: true });
      await rm(path.join(mixed, name));
      await symlink(path.join(directory, name), path.join(mixed, name));
      await expectLayercastRejection(read(mixed, [inner]), "source_not_allowed", new RegExp(name));
    }
  });

  it("names the link, and where it leads, of a hub's snapshot that is the root itself; with its repository as root it loads", async () => {
    const repository = path.join(root, "hub/models--org--m");
    const snapshot = path.join(repository, "snapshots/0123abcd");
    await mkdir(path.join(repository, "blobs"), { recursive: true });
    await mkdir(snapshot, { recursive: true });
    for (const [name, content] of [
      ["config.json", CONFIG],
      ["model.safetensors", buildSafetensors({ w: ONE })],
    ] as const) {
      await writeFile(path.join(repository, "blobs", name.length.toString()), content);
      await symlink(`../../blobs/${name.length}`, path.join(snapshot, name));
    }
    const error = await expectLayercastRejection(
      read(snapshot, [snapshot]),
      "source_not_allowed",
      /config\.json is a symbolic link to \.\.\/\.\.\/blobs\/11, which leads out of .*--source-root \S*models--org--m\./,
    );
    expect(error.details).toMatchObject({ link: path.join(snapshot, "config.json"), target: "../../blobs/11" });
    expect((await read(snapshot, [repository])).table.tensors.size).toBe(1);
  });

  it("says nothing of a link that lies outside of the roots itself", async () => {
    const inner = path.join(root, "allowed");
    await mkdir(inner);
    await symlink(directory, path.join(root, "elsewhere"));
    for (const uri of [`${inner}/../elsewhere`, path.join(root, "elsewhere")])
      await expectLayercastRejection(read(uri, [inner]), "source_not_allowed", /lies outside the directories/);
  });

  it("refuses a tensor that is in two files, naming both", async () => {
    await put("a.safetensors", buildSafetensors({ w: ONE }));
    await put("b.safetensors", buildSafetensors({ w: ONE }));
    await expectLayercastRejection(
      read(),
      "checkpoint_invalid",
      /"w" is in two files, a\.safetensors and b\.safetensors/,
    );
  });

  it("notes what the index names and no file holds, and whether its file is there", async () => {
    await put("a.safetensors", buildSafetensors({ w: ONE }));
    await put("model.safetensors.index.json", index({ w: "a.safetensors", x: "a.safetensors", y: "b.safetensors" }));
    expect((await read()).table).toMatchObject({
      absent: new Map([
        ["x", { file: "a.safetensors", isFileThere: true }],
        ["y", { file: "b.safetensors", isFileThere: false }],
      ]),
      warnings: [],
    });
  });

  it("reads model.safetensors where the index is stale, and says so", async () => {
    await put("model.safetensors", buildSafetensors({ w: ONE }));
    await put("model.safetensors.index.json", index({ v: "model-00001-of-00001.safetensors" }));
    const { table } = await read();
    expect([...table.tensors.keys(), ...table.warnings.map(({ code }) => code)]).toEqual(["w", "index_stale"]);
  });

  it("says of an adapter beside the model that it is not applied", async () => {
    await put("model.safetensors", buildSafetensors({ w: ONE }));
    await put("adapter_model.safetensors", buildSafetensors({ "w.lora_A.weight": ONE }));
    await put("adapter_config.json", "{}");
    const { table } = await read();
    expect([...table.tensors.keys()]).toEqual(["w"]);
    expect(table.warnings).toMatchObject([
      { code: "adapter_not_applied", details: { files: ["adapter_config.json", "adapter_model.safetensors"] } },
    ]);
  });

  it("has tensors under the names of a model that is not wrapped, what is absent too, and says so", async () => {
    await put("a.safetensors", buildSafetensors({ "module.model.norm.weight": ONE, "module.lm_head.weight": ONE }));
    await put(
      "model.safetensors.index.json",
      index({ "module.model.norm.weight": "a.safetensors", "module.model.layers.9.x": "a.safetensors" }),
    );
    const { table } = await read();
    expect([...table.tensors.keys()]).toEqual(["lm_head.weight", "model.norm.weight"]);
    expect([...table.tensors.values()].map(({ name }) => name)).toEqual([...table.tensors.keys()]);
    expect([...table.absent.keys()]).toEqual(["model.layers.9.x"]);
    expect(table.warnings).toMatchObject([{ code: "names_unwrapped" }]);
  });

  it("refuses an index that disagrees with the files", async () => {
    await put("a.safetensors", buildSafetensors({ w: ONE }));
    await put("b.safetensors", buildSafetensors({ v: ONE }));
    await put("model.safetensors.index.json", index({ w: "b.safetensors", v: "a.safetensors" }));
    await expectLayercastRejection(read(), "checkpoint_invalid", /puts "w" into b\.safetensors, but a\.safetensors/);
    await put("model.safetensors.index.json", index({ w: "c.safetensors" }));
    await expectLayercastRejection(read(), "source_not_found", /c\.safetensors/);
  });

  it.each([
    ["a path upwards", index({ w: "../a.safetensors" })],
    ["an absolute path", index({ w: "/etc/a.safetensors" })],
    ["another kind of file", index({ w: "config.json" })],
    ["a name with a zero byte", index({ w: "a\0.safetensors" })],
    ["a number for a file", index({ w: 1 })],
    ["no weight_map", "{}"],
    ["an empty weight_map", index({})],
    ["a list", "[]"],
    ["no JSON", "{"],
    ["a tensor twice", '{"weight_map":{"w":"a.safetensors","w":"b.safetensors"}}'],
    ["what is not UTF-8", Uint8Array.of(0x7b, 0xff, 0x7d)],
  ])("refuses an index with %s", async (_, content) => {
    await put("model.safetensors.index.json", content);
    await expectLayercastRejection(read(), "checkpoint_invalid", /model\.safetensors\.index\.json/);
  });

  it("says what is not there: weights, config.json, a directory", async () => {
    await expectLayercastRejection(read(), "checkpoint_invalid", /no \*\.safetensors file/);
    await put("a.safetensors", buildSafetensors({ w: ONE }));
    await expectLayercastRejection(
      read(path.join(directory, "a.safetensors")),
      "checkpoint_invalid",
      /not a directory/,
    );
    await rm(path.join(directory, "config.json"));
    await expectLayercastRejection(read(), "checkpoint_invalid", /no config\.json/);
  });

  it("refuses a truncated file and a FIFO, without waiting for its writer", async () => {
    const whole = buildSafetensors({ w: ONE });
    await put("a.safetensors", whole);
    await truncate(path.join(directory, "a.safetensors"), whole.byteLength - 1);
    await expectLayercastRejection(read(), "checkpoint_invalid", /truncated/);
    await rm(path.join(directory, "a.safetensors"));
    expect(spawnSync("sh", ["-c", `mkfifo "$0"`, path.join(directory, "a.safetensors")]).status).toBe(0);
    await expectLayercastRejection(read(), "checkpoint_invalid", /not a regular file/);
  });

  it("reads many files at once and keeps their order", async () => {
    const names = Array.from({ length: 40 }, (_, at) => `m-${String(at).padStart(3, "0")}`);
    await Promise.all(names.map((name) => put(`${name}.safetensors`, buildSafetensors({ [name]: ONE }))));
    const { table } = await read();
    for (const { name, file } of table.tensors.values()) expect(table.files[file]?.path).toContain(name);
    expect(table.tensors.size).toBe(40);
  });
});

describe("verifyFile", () => {
  it("accepts the file as it was", async () => {
    await put("a.safetensors", buildSafetensors({ w: ONE }));
    await expect(verifyFile(await describeFile(path.join(directory, "a.safetensors")))).resolves.toBeUndefined();
  });

  it("tells a change of size, time, inode or header, and a file that is gone", async () => {
    const file = path.join(directory, "a.safetensors");
    await put("a.safetensors", buildSafetensors({ w: ONE }));
    const before = await describeFile(file);
    const keepTime = () => utimes(file, 1_000, 1_000);
    await keepTime();
    await expectLayercastRejection(verifyFile(before), "source_changed", /modification time/);
    const timed = await describeFile(file);

    await put("a.safetensors", buildSafetensors({ v: ONE }));
    await keepTime();
    await expectLayercastRejection(verifyFile(timed), "source_changed", /header digest/);

    const replaced = await describeFile(file);
    await copyFile(file, `${file}.new`);
    await rename(`${file}.new`, file);
    await keepTime();
    await expectLayercastRejection(verifyFile(replaced), "source_changed", /inode/);

    const whole = await describeFile(file);
    await appendFile(file, "more");
    await expectLayercastRejection(verifyFile(whole), "source_changed", /size in bytes/);
    await rm(file);
    await expectLayercastRejection(verifyFile(whole), "source_not_found", /ENOENT/);
  });

  it("refuses a symbolic link in the file's place", async () => {
    await put("a.safetensors", withHeader("{}"));
    const link = path.join(directory, "link.safetensors");
    await symlink(path.join(directory, "a.safetensors"), link);
    await expectLayercastRejection(describeFile(link), "source_not_found", /ELOOP/);
  });

  it("refuses a file outside of the roots, when a directory of its path became a link after the path was looked at", async () => {
    const [inner, outside] = [path.join(root, "allowed"), path.join(root, "outside")];
    for (const one of [inner, outside]) await mkdir(one);
    await writeFile(path.join(outside, "a.safetensors"), withHeader("{}"));
    const roots = await resolveRoots([inner]);
    await symlink(outside, path.join(inner, "step"));
    const file = path.join(inner, "step", "a.safetensors");
    await expectLayercastRejection(readCheckpointFile(file, roots), "source_not_allowed", /outside the directories/);
    await expectLayercastRejection(headerBytesOf(file, roots), "source_not_allowed", /outside the directories/);
    const wider = await resolveRoots([root]);
    expect((await readCheckpointFile(file, wider)).file.path).toBe(file);
  });
});
