// What the kinds of source have of their own, from a submission to the start of its reload. A new kind is a row here, one in the
// worker's table, and the file of each; everything else is the same for all.

import type { Redis } from "ioredis";
import type { Checkpoint } from "../checkpoint/checkpoint-table.js";
import { KEYS } from "../contract/jobs.js";
import type { ReadSource, SubmitRequest } from "../contract/reload.js";
import type { StoredRequest } from "../fleet/record-store.js";
import type { PushRecord } from "../fleet/state.js";
import type { DriveDeps, ReloadDeps } from "./deps.js";
import { makePlan } from "./make-plan.js";
import { declaredCheckpoint, loadPushModel, packPushModel } from "./push/push-model.js";

type SourceKind = ReadSource["kind"];
type Requested<Kind extends SourceKind> = Extract<ReadSource, { kind: Kind }>;
type Stored<Kind extends SourceKind> = Extract<StoredRequest["source"], { kind: Kind }>;

type Check = (deps: ReloadDeps, request: SubmitRequest) => Promise<void>;

/** What is written with a new reload's record. */
interface Recorded {
  push: PushRecord | null;
  beside: { key: string; value: string }[];
}

interface SourceRow<Kind extends SourceKind> {
  /** Throws what is wrong with the body by itself; the check that it returns looks at files and the fleet. */
  checkOf(source: Requested<Kind>): Check;
  record(source: Requested<Kind>, reload: string): Promise<Recorded>;
  /** As the request is stored. */
  stored(source: Requested<Kind>): Stored<Kind>;
  read(sources: ReloadDeps["sources"], source: Requested<Kind>): Promise<Checkpoint>;
  /** Of a request that is stored. */
  readStored(
    from: { redis: Redis; sources: ReloadDeps["sources"] },
    source: Stored<Kind>,
    reload: string,
  ): Promise<Checkpoint>;
  /** The reload is planned; its bytes may be delivered. */
  start(deps: DriveDeps, source: Stored<Kind>, reload: string): Promise<void>;
  /** What a reload's view says. */
  shown(source: Stored<Kind>): string;
  /** Its files are there after the reload, to be loaded again. */
  stays: boolean;
}

const ROWS: { [Kind in SourceKind]: SourceRow<Kind> } = {
  safetensors: {
    checkOf: (source) => async (deps) => void (await deps.sources.resolve(source.uri)),
    record: async () => ({ push: null, beside: [] }),
    stored: (source) => source,
    read: (sources, { uri }) => sources.readTable(uri),
    readStored: ({ sources }, { uri }) => sources.readTable(uri),
    start: async () => {},
    shown: ({ uri }) => uri,
    stays: true,
  },
  push: {
    checkOf({ model, settings }) {
      const declared = declaredCheckpoint(model);
      return (deps, request) => checkPush(deps, { ...request, source: settings }, request.fleet, declared);
    },
    record: async ({ model, settings: { partial } }, reload) => ({
      push: { finished: false, partial, wanted: [] },
      beside: [{ key: KEYS.pushModel(reload), value: await packPushModel(model) }],
    }),
    stored: ({ settings }) => settings,
    read: async (_, { model }) => declaredCheckpoint(model),
    readStored: async ({ redis }, _, reload) => declaredCheckpoint(await loadPushModel(redis, reload)),
    start: (deps, { retain }, reload) => deps.sessions.open(reload, retain),
    shown: () => "push",
    stays: false,
  },
};

/** The row of a source's kind, for sources of that kind. */
export function kindOf<Kind extends SourceKind>({ kind }: { kind: Kind }): SourceRow<Kind> {
  return ROWS[kind];
}

/** What makes a push impossible is said before there is a record, where the fleet's size is known. */
async function checkPush(
  deps: ReloadDeps,
  request: StoredRequest & { source: Stored<"push"> },
  fleet: string,
  declared: Checkpoint,
): Promise<void> {
  const state = (await deps.store.read(fleet))?.state;
  if (state === undefined || state.topology === null) return;
  // Those before it may commit the weights that a partial push changes.
  const isFirst = Object.keys(state.reloads).length === 0;
  const { source } = request;
  makePlan({ ...request, source: { ...source, partial: source.partial && isFirst } }, state, declared);
}
