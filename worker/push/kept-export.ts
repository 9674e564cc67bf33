// What was pushed is nowhere once its reload has ended. With retain_export a rank keeps a file of what it holds after the commit,
// and starts from that when it comes back without its arena.

import { dirname, join } from "node:path";
import { type LayerProgram, SLICE_FIELDS } from "../../native/native.js";
import { readCheckpointFile } from "../../orchestrator/checkpoint/checkpoint-file.js";
import type { SafetensorsHeader } from "../../orchestrator/checkpoint/safetensors-header.js";
import { DTYPES, elementCount } from "../../orchestrator/contract/dtype.js";
import { LayercastError } from "../../orchestrator/contract/errors.js";
import type { ArenaTensor, CheckpointFile } from "../../orchestrator/contract/plan.js";
import type { Held } from "../../orchestrator/fleet/state.js";
import { exportLayout, layoutArena } from "../../orchestrator/program/arena-layout.js";
import { digestFromHex } from "../ledger.js";
import type { Loading } from "../loading.js";
import type { RankArena } from "../rank-arena.js";

/** After a commit: what is live becomes the kept file, or none is kept. */
export async function keepExport({ plan, pushes, staging }: Loading, held: Held): Promise<void> {
  const path = pathIn(pushes.arena);
  if (!plan.retainExport) return pushes.files.remove(path);
  await staging.whileStanding(async () => {
    const standing = pushes.arena.standing();
    if (standing === null || pushes.arena.liveState().held?.content !== held.content) return;
    const { headerBytes, spans } = exportLayout(standing.layout, metadataOf(held));
    const { core } = pushes;
    await core.exportLive(standing.arena, path, headerBytes, spans, core.createCancel());
  });
}

/** Whether the kept file is of the content that is to be loaded: never, where that content's plan keeps none. */
export async function isExportOf({ owner, plan, pushes }: Loading): Promise<boolean> {
  const path = pathIn(pushes.arena);
  if (!plan.retainExport || !pushes.files.exists(path)) return false;
  const { header } = await readCheckpointFile(path);
  const wanted = { content: owner.content, layout_digest: plan.layoutDigest };
  return Object.entries(wanted).every(([key, value]) => header.metadata.get(key) === value);
}

/** open -> prepared: the file's tensors are the arena's, byte for byte. */
export async function stageExport({ owner, plan, mode, staging, report, pushes }: Loading): Promise<void> {
  await staging.open(owner, plan, mode);
  report.phase("loading");
  const { file, header } = await readCheckpointFile(pathIn(pushes.arena));
  const { tensors } = layoutArena(plan.layout, pushes.rank);
  const program = copyProgram(tensors, file, header);
  const done = await staging.run(
    owner,
    plan,
    { program, origins: new Float64Array(), bytes: tensors.reduce((sum, { bytes }) => sum + bytes, 0) },
    { name: "the kept export", phase: "layer" },
  );
  report.layerWritten(done);
  for (const layer of plan.layout.layers.keys()) report.layerComplete(layer);
  await staging.close(owner, digestFromHex(done.digest), null);
}

/** Each tensor as one row that is copied as it is. */
function copyProgram(tensors: readonly ArenaTensor[], file: CheckpointFile, header: SafetensorsHeader): LayerProgram {
  const kept = new Map(header.tensors.map((tensor) => [tensor.name, tensor]));
  const ops: number[] = [];
  const slices: number[] = [];
  for (const { name, dtype, shape, offset, bytes } of tensors) {
    const { code, bytes: elementBytes } = DTYPES[dtype];
    const found = kept.get(name);
    const cols = elementCount(shape);
    if (cols === 0) continue;
    if (found === undefined || found.sizeBytes !== bytes)
      throw new LayercastError("source_gone", `${file.path} lacks ${name}; push the weights again`, { tensor: name });
    // In the order of OP_FIELDS and SLICE_FIELDS.
    ops.push(0, code, -1, 1, cols, offset, -1, slices.length / SLICE_FIELDS.length, 1, 0, 0, Number.NaN, 0);
    slices.push(0, found.offset, bytes, 1, cols, code, 0, elementBytes, -1);
  }
  const none = new Float64Array();
  return {
    files: [file],
    ops: Float64Array.from(ops),
    slices: Float64Array.from(slices),
    ...{ scales: none, agreements: none, derived: none },
    allowNonFinite: true,
  };
}

function metadataOf({ weightVersion, content, layoutDigest }: Held): Record<string, string> {
  return { weight_version: weightVersion, content, layout_digest: layoutDigest };
}

function pathIn({ livePath }: RankArena): string {
  return join(dirname(livePath), "kept.safetensors");
}
