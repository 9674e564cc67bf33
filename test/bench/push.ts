// What it costs that a trainer sends tensors instead of naming a checkpoint: the same 1 GiB, pulled and pushed by turns. Buckets lie
// there as files, as a trainer's shared memory would; what is timed is everything from opening the session to its commit.

import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { compareTensors, type Golden } from "../../orchestrator/cli/compare-tensors.js";
import { bucketBytes, type CutBucket, cutBuckets, type StoredTensor } from "../../orchestrator/cli/cut-buckets.js";
import { whenTaking } from "../../orchestrator/cli/send-buckets.js";
import { bucketBody, readStoredCheckpoint, type StoredCheckpoint } from "../../orchestrator/cli/stored-checkpoint.js";
import type { ExpectedTensorsView } from "../../orchestrator/contract/push.js";
import type { Scheme } from "../../orchestrator/contract/recipe.js";
import { type Case, type Check, check, type Row } from "./case.js";
import { allCommitted, type BenchFleet, exportDigests, startBenchFleet, type TimedReload, whenEnded } from "./fleet.js";
import { ONE_GIB } from "./load.js";
import { median } from "./statistics.js";
import { checkpointBytes, writeCheckpoint } from "./write-checkpoint.js";

const RANKS = 2;
const ROUNDS = 5;
const SCHEMES: readonly Scheme[] = ["fp8-channel", "fp8-tensor"];
const TARGET_OF_PULL = 1.3;
const TARGET_MODULES = 2;
const RANDOM_SEED = 1;
/** Buckets end where they are full, in the middle of a module too. */
const BUCKET_BYTES = 128 * 2 ** 20;

export const push: Case = {
  name: "push",
  says: `1 GiB BF16, ${RANKS} CPU ranks: from the first request to the commit, by pull and by push; GB = 10^9`,
  columns: [
    { key: "total_ms", title: "ms" },
    { key: "gb_per_s", title: "GB/s", decimals: 2 },
    { key: "of_pull", title: "of pull", decimals: 2 },
    { key: "target_of_pull", title: "target", decimals: 1 },
    { key: "peak_buffer_mib", title: "buffers MiB", decimals: 1 },
    { key: "module_mib", title: "module MiB", decimals: 1 },
    { key: "target_buffer_mib", title: "target", decimals: 1 },
    { key: "buckets", title: "buckets", decimals: 0 },
    { key: "rounds", title: "rounds", decimals: 0 },
  ],
  async run({ reloads, directory, say }) {
    const sources = join(directory, "sources");
    const directoryOfCheckpoint = join(sources, "one-gib");
    await mkdir(sources);
    say("writing a checkpoint of 1 GiB");
    await writeCheckpoint(directoryOfCheckpoint, ONE_GIB, { files: 4 });
    const fleet = await startBenchFleet({ tp: RANKS, directory, sources });
    try {
      const trainer = await prepareTrainer(fleet, directoryOfCheckpoint, sources, say);
      const rows: Row[] = [];
      for (const scheme of SCHEMES) rows.push(...(await measure(fleet, trainer, scheme, reloads ?? ROUNDS, say)));
      return rows;
    } finally {
      await fleet.stop();
    }
  },
};

/** The checkpoint, and its buckets as files. */
interface Trainer {
  path: string;
  checkpoint: StoredCheckpoint;
  /** URIs. */
  byModule: string[];
  atRandom: string[];
  /** A rank's part of the largest module that is made of several tensors: one that may have to wait for some of them. */
  moduleBytes: number;
}

async function prepareTrainer(
  fleet: BenchFleet,
  path: string,
  sources: string,
  say: (line: string) => void,
): Promise<Trainer> {
  const checkpoint = await readStoredCheckpoint(path);
  say("asking for the order of the modules");
  const { tensors } = await expectedOf(fleet, checkpoint);
  const modules = modulesIn(tensors, checkpoint.tensors);
  const names = tensors.map(({ name }) => name);
  const cut = { bucketBytes: BUCKET_BYTES, rows: null, seed: RANDOM_SEED };
  const byModule = cutBuckets(checkpoint.tensors, names, { ...cut, order: "module" });
  const atRandom = cutBuckets(checkpoint.tensors, names, { ...cut, order: "random" });
  say(`writing ${byModule.length} buckets module by module, and ${atRandom.length} at random`);
  return {
    path,
    checkpoint,
    byModule: await writeBuckets(join(sources, "by-module"), byModule),
    atRandom: await writeBuckets(join(sources, "at-random"), atRandom),
    moduleBytes: Math.max(...modules.filter(({ length }) => length > 1).map(partOfRank)),
  };
}

async function expectedOf(fleet: BenchFleet, checkpoint: StoredCheckpoint): Promise<ExpectedTensorsView> {
  const { client } = fleet;
  const { reload_id: id } = await client.submit(draftOf(fleet, checkpoint, "none", 1));
  await whenTaking(client, id, AbortSignal.timeout(30_000));
  const expected = await client.expectedTensors(id);
  await client.cancel(id);
  await whenEnded(client.url, id);
  return expected;
}

function modulesIn(expected: ExpectedTensorsView["tensors"], tensors: readonly StoredTensor[]): CutBucket[] {
  const byName = new Map(tensors.map((tensor) => [tensor.name, tensor]));
  const modules = new Map<string, { tensor: StoredTensor; firstRow: number; rows: number }[]>();
  for (const { name, modules: needing } of expected) {
    const tensor = byName.get(name);
    if (tensor === undefined) continue;
    const [module = name] = needing;
    const part = { tensor, firstRow: 0, rows: tensor.shape[0] ?? 1 };
    modules.set(module, [...(modules.get(module) ?? []), part]);
  }
  return [...modules.values()];
}

const partOfRank = (module: CutBucket) => bucketBytes(module) / RANKS;

async function writeBuckets(directory: string, buckets: readonly CutBucket[]): Promise<string[]> {
  await mkdir(directory);
  const uris: string[] = [];
  for (const [index, bucket] of buckets.entries()) {
    const path = join(directory, `${index}.safetensors`);
    await writeFile(path, bucketBody(bucket).chunks());
    uris.push(pathToFileURL(path).href);
  }
  return uris;
}

function draftOf(fleet: BenchFleet, { config, tensors }: StoredCheckpoint, scheme: Scheme, buckets: number) {
  const listed = tensors.map(({ name, dtype, shape }) => ({ name, dtype, shape }));
  const source = { kind: "push", config, tensors: listed, max_pending_buckets: buckets } as const;
  return { fleet: fleet.name, source, recipe: { scheme }, install: { allow_new_layout: true } };
}

/** By turns, so that what else the machine does meets all. */
async function measure(
  fleet: BenchFleet,
  trainer: Trainer,
  scheme: Scheme,
  rounds: number,
  say: (line: string) => void,
): Promise<Row[]> {
  const body = { recipe: { scheme }, install: { allow_new_layout: true } };
  say(`${scheme}: the first load, which lays the arena out`);
  const first = await fleet.reload(trainer.path, body);
  const digests = await exportDigests(fleet, RANKS);
  const [pulls, byModule, atRandom]: [TimedReload[], TimedReload[], TimedReload[]] = [[], [], []];
  say(`${scheme}: ${rounds} rounds of a pull, a push by module and one at random`);
  const wrong = { byModule: [] as string[], atRandom: [] as string[] };
  for (let round = 0; round < rounds; round++) {
    pulls.push(await fleet.reload(trainer.path, body));
    byModule.push(await pushOnce(fleet, trainer.checkpoint, scheme, trainer.byModule));
    if (round === 0) wrong.byModule = await differences(fleet, digests);
    atRandom.push(await pushOnce(fleet, trainer.checkpoint, scheme, trainer.atRandom));
    if (round === 0) wrong.atRandom = await differences(fleet, digests);
  }
  const same = (found: string[]) => check("exports as after a pull", found);
  const { moduleBytes } = trainer;
  return [
    rowOf(`${scheme}, pull`, pulls, null, [allCommitted([first, ...pulls])]),
    rowOf(`${scheme}, push by module`, byModule, { pulls, moduleBytes, isTarget: true }, [same(wrong.byModule)]),
    rowOf(`${scheme}, push at random`, atRandom, { pulls, moduleBytes, isTarget: false }, [same(wrong.atRandom)]),
  ];
}

async function pushOnce(
  fleet: BenchFleet,
  checkpoint: StoredCheckpoint,
  scheme: Scheme,
  uris: readonly string[],
): Promise<TimedReload> {
  const { client } = fleet;
  const draft = draftOf(fleet, checkpoint, scheme, uris.length);
  const startedAt = performance.now();
  const { reload_id: id } = await client.submit(draft);
  await whenTaking(client, id, AbortSignal.timeout(30_000));
  for (const uri of uris) await client.postBucket(id, { uri, immutable: true });
  await client.finish(id);
  const reload = await whenEnded(client.url, id);
  return { reload, clientMs: performance.now() - startedAt };
}

async function differences(fleet: BenchFleet, expected: readonly Golden[]): Promise<string[]> {
  const found = await exportDigests(fleet, RANKS);
  return found.flatMap((one, rank) => compareTensors(one, expected[rank] ?? {}).differences);
}

function rowOf(
  what: string,
  timed: readonly TimedReload[],
  compared: { pulls: readonly TimedReload[]; moduleBytes: number; isTarget: boolean } | null,
  checks: Check[],
): Row {
  const totalMs = median(timed.map(({ clientMs }) => clientMs));
  const values = {
    total_ms: totalMs,
    gb_per_s: checkpointBytes(ONE_GIB) / totalMs / 1e6,
    rounds: timed.length,
    ...(compared === null ? {} : pushValues(timed, compared)),
  };
  return { what, values, checks: compared === null ? checks : [allCommitted(timed), ...checks] };
}

function pushValues(
  timed: readonly TimedReload[],
  { pulls, moduleBytes, isTarget }: { pulls: readonly TimedReload[]; moduleBytes: number; isTarget: boolean },
): Row["values"] {
  const ranks = timed.flatMap(({ reload }) => reload.ranks);
  const mib = (bytes: number) => bytes / 2 ** 20;
  return {
    of_pull: median(timed.map(({ clientMs }, round) => clientMs / (pulls[round]?.clientMs ?? Number.NaN))),
    target_of_pull: isTarget ? TARGET_OF_PULL : null,
    peak_buffer_mib: mib(Math.max(...ranks.map((rank) => rank.push?.buffers.peak_host_bytes ?? Number.NaN))),
    module_mib: mib(moduleBytes),
    target_buffer_mib: isTarget ? mib(TARGET_MODULES * moduleBytes) : null,
    buckets: timed[0]?.reload.push?.buckets.accepted ?? null,
  };
}
