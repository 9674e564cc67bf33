// A submission to a queued record: idempotent by submission id, written in one step with its place in the queue (P7).

import { createHash, randomBytes } from "node:crypto";
import { LayercastError } from "../contract/errors.js";
import { KEYS } from "../contract/jobs.js";
import { type RollbackRequest, readSource, type SubmitRequest } from "../contract/reload.js";
import { refuseUnderEngines } from "../fleet/engine-leases.js";
import type { Beside } from "../fleet/fleet-write.js";
import type { StoredRequest } from "../fleet/record-store.js";
import { type NewReload, submit } from "../fleet/reload-transitions.js";
import type { Context, FleetState } from "../fleet/state.js";
import type { ReloadDeps } from "./deps.js";
import { kindOf } from "./source-kinds.js";

export interface Submitted {
  id: string;
  /** False when the same submission was made before. */
  created: boolean;
}

const MAX_QUEUED = 200;

export async function submitReload(deps: ReloadDeps, request: SubmitRequest): Promise<Submitted> {
  const source = readSource(request.source);
  const kind = kindOf(source);
  const check = kind.checkOf(source);
  const id = newReloadId();
  const submissionId = request.submission_id ?? id;
  const repeat = await deps.redis.get(KEYS.submission(request.fleet, submissionId));
  if (repeat !== null) return repeated(submissionId, digestOf(request), repeat);
  await check(deps, request);
  const { policy, install } = request;
  if (install.mode === "in_place") await requireNoEngines(deps, request.fleet);
  const { push, beside } = await kind.record(source, id);
  const stored = storable(request, kind.stored(source));
  return submitOnce(deps, request.fleet, submissionId, request, { stored, beside }, () => ({
    id,
    kind: "reload",
    submissionId,
    content: id,
    weightVersion: request.weight_version ?? submissionId,
    priority: policy.priority,
    coalesce: policy.coalesce,
    inPlace: install.mode === "in_place",
    push,
    layoutDigest: null,
    deadlineMs: policy.deadline_ms,
    healMs: policy.heal_ms,
  }));
}

/** Said before there is a record; an engine that attaches later is found when loading begins. */
async function requireNoEngines({ store }: ReloadDeps, fleet: string): Promise<void> {
  const known = await store.read(fleet);
  if (known !== null) refuseUnderEngines(known.state, { inPlace: true }, null);
}

/** A rollback is a reload of its own, to weights that were committed before (P11). */
export async function submitRollback(deps: ReloadDeps, fleet: string, request: RollbackRequest): Promise<Submitted> {
  const known = await deps.store.read(fleet);
  if (known === null) throw unknownFleet(fleet);
  const submissionId = request.submission_id ?? newReloadId();
  const repeat = await deps.redis.get(KEYS.submission(fleet, submissionId));
  if (repeat !== null) return repeated(submissionId, digestOf(request), repeat);
  requireExpectedVersion(known.state, request.expected_weight_version ?? null);
  const target = await findRollbackTarget(deps, known.state, request.to_weight_version ?? null);
  const { policy } = target.request;
  const written = { stored: target.request, beside: [] };
  return submitOnce(deps, fleet, submissionId, request, written, (state) => {
    requireExpectedVersion(state, request.expected_weight_version ?? null);
    return {
      id: newReloadId(),
      kind: "rollback",
      submissionId,
      content: target.content,
      weightVersion: target.weightVersion,
      priority: policy.priority,
      coalesce: "never",
      inPlace: false,
      push: null,
      layoutDigest: null,
      deadlineMs: policy.deadline_ms,
      healMs: policy.heal_ms,
    };
  });
}

async function submitOnce(
  deps: ReloadDeps,
  fleet: string,
  submissionId: string,
  body: unknown,
  { stored: request, beside: written }: { stored: StoredRequest; beside: { key: string; value: string }[] },
  describe: (state: FleetState) => NewReload,
): Promise<Submitted> {
  const key = KEYS.submission(fleet, submissionId);
  const digest = digestOf(body);
  const transition = (state: FleetState, context: Context, beside: Beside): Submitted => {
    const before = beside.stored[0] ?? null;
    if (before !== null) return repeated(submissionId, digest, before);
    requireRoom(state);
    const record = submit(state, describe(state), context);
    beside.set.push(...written, { key, value: JSON.stringify({ reload: record.id, digest }) });
    beside.reloadIndex.push({ id: record.id, at: record.times.created });
    beside.reloadFields.push({ id: record.id, field: "request", value: JSON.stringify(request) });
    return { id: record.id, created: true };
  };
  return deps.submitting.take(fleet, async () => (await deps.store.transact(fleet, transition, [key])).result);
}

function repeated(submissionId: string, digest: string, stored: string): Submitted {
  const before = JSON.parse(stored) as { reload: string; digest: string };
  if (before.digest === digest) return { id: before.reload, created: false };
  throw new LayercastError(
    "submission_conflict",
    `submission ${submissionId} was made before with another body, as reload ${before.reload}; use a new submission_id`,
    { submission_id: submissionId, reload_id: before.reload },
  );
}

function requireRoom(state: FleetState): void {
  const unfinished = Object.keys(state.reloads).length;
  if (unfinished < MAX_QUEUED) return;
  throw new LayercastError(
    "backpressure",
    `fleet ${state.fleet} has ${unfinished} unfinished reloads; try again later, or submit with policy.coalesce "latest"`,
    { unfinished },
  );
}

function requireExpectedVersion(state: FleetState, expected: string | null): void {
  const held = state.committed?.weightVersion ?? null;
  if (expected === null || expected === held) return;
  throw new LayercastError(
    "weight_version_conflict",
    `fleet ${state.fleet} holds weight version ${held ?? "none"}, not ${expected}; look at it again before rolling back`,
    { expected_weight_version: expected, weight_version: held },
  );
}

/** The committed content that bears the version: the one before, or the newest by that name. */
async function findRollbackTarget(deps: ReloadDeps, state: FleetState, version: string | null) {
  const { previous, committed } = state;
  if (committed !== null && version === committed.weightVersion) {
    throw new LayercastError("nothing_to_roll_back", `fleet ${state.fleet} holds weight version ${version} already`, {
      weight_version: version,
    });
  }
  if (previous !== null && (version === null || version === previous.weightVersion)) {
    const { request } = await deps.records.read(previous.content);
    return { content: previous.content, weightVersion: previous.weightVersion, request };
  }
  const found = version === null ? null : await findCommitted(deps, state.fleet, version);
  if (found !== null) return found;
  throw new LayercastError(
    "nothing_to_roll_back",
    version === null
      ? `fleet ${state.fleet} has committed no weights before those it holds`
      : `fleet ${state.fleet} has never committed a weight version ${version}, or its record is no longer kept`,
    { to_weight_version: version },
  );
}

async function findCommitted(deps: ReloadDeps, fleet: string, version: string) {
  const ids = await deps.redis.zrevrange(KEYS.reloads, 0, -1);
  for (const id of ids) {
    const { record, request } = await deps.records.read(id);
    if (record.fleet !== fleet || record.state !== "committed" || record.weightVersion !== version) continue;
    return { content: record.content, weightVersion: version, request };
  }
  return null;
}

function storable(
  { dtype, recipe, install, policy, metadata }: SubmitRequest,
  source: StoredRequest["source"],
): StoredRequest {
  return { dtype, recipe, install, policy, metadata, source };
}

export function unknownFleet(fleet: string): LayercastError {
  return new LayercastError("not_found", `there is no fleet ${fleet}; list them with GET /v1/fleets`, { fleet });
}

/** Sorts by time of submission; short enough for the control page. */
function newReloadId(): string {
  return `r${Date.now().toString(36)}${randomBytes(4).toString("hex")}`;
}

function digestOf(body: unknown): string {
  return createHash("sha256").update(canonicalJson(body)).digest("hex");
}

function canonicalJson(value: unknown): string {
  return JSON.stringify(value, (_key, inner: unknown) =>
    inner !== null && typeof inner === "object" && !Array.isArray(inner)
      ? Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : 1)))
      : inner,
  );
}
