// Some rows of what a rank holds, worked out by hand from the checkpoint: every part of the fused tensors, a tensor cut by
// columns, and one that is only copied.

import { type Check, check } from "./case.js";
import { floatsOfBf16, quantizeRow } from "./fp8-by-hand.js";
import { filesOf, openRows, type TensorRows } from "./tensor-rows.js";
import type { LlamaShape } from "./write-checkpoint.js";

interface Spot {
  kernelTensor: string;
  kernelRow: number;
  source: string;
  sourceRow: number;
  columns?: { from: number; count: number };
}

export async function spotCheck(
  checkpoint: string,
  shape: LlamaShape,
  ranks: number,
  rank: number,
  path: string,
): Promise<Check> {
  const source = await openRows(await filesOf(checkpoint));
  const found = await openRows([path]);
  try {
    const spots = quantizedSpots(shape, ranks, rank);
    const wrong: string[] = [];
    for (const spot of spots) wrong.push(...(await quantizedDifference(source, found, spot)));
    wrong.push(...(await copiedDifference(source, found, copiedSpot(shape, ranks, rank))));
    return check(`rank ${rank}: ${spots.length + 1} rows as by hand`, wrong);
  } finally {
    await source.close();
    await found.close();
  }
}

function quantizedSpots(shape: LlamaShape, ranks: number, rank: number): Spot[] {
  const queries = (shape.heads * shape.headDim) / ranks;
  const keys = (shape.keyValueHeads * shape.headDim) / ranks;
  const wide = shape.intermediate / ranks;
  const last = shape.layers - 1;
  const spot = (layer: number, fused: string, kernelRow: number, part: string, sourceRow: number): Spot => ({
    kernelTensor: `model.layers.${layer}.${fused}`,
    kernelRow,
    source: `model.layers.${layer}.${part}.weight`,
    sourceRow,
  });
  return [
    spot(0, "self_attn.qkv_proj", 1, "self_attn.q_proj", rank * queries + 1),
    spot(0, "self_attn.qkv_proj", queries, "self_attn.k_proj", rank * keys),
    spot(last, "self_attn.qkv_proj", queries + keys + 7, "self_attn.v_proj", rank * keys + 7),
    spot(0, "mlp.gate_up_proj", wide - 1, "mlp.gate_proj", rank * wide + wide - 1),
    spot(last, "mlp.gate_up_proj", wide + 9, "mlp.up_proj", rank * wide + 9),
    { ...spot(0, "self_attn.o_proj", 11, "self_attn.o_proj", 11), columns: { from: rank * queries, count: queries } },
    { ...spot(last, "mlp.down_proj", 3, "mlp.down_proj", 3), columns: { from: rank * wide, count: wide } },
  ];
}

function copiedSpot({ vocabulary }: LlamaShape, ranks: number, rank: number): Spot {
  const name = "lm_head.weight";
  return { kernelTensor: name, kernelRow: 17, source: name, sourceRow: (rank * vocabulary) / ranks + 17 };
}

async function quantizedDifference(source: TensorRows, found: TensorRows, spot: Spot): Promise<string[]> {
  const { kernelTensor, kernelRow } = spot;
  const expected = quantizeRow(floatsOfBf16(await source.row(spot.source, spot.sourceRow, spot.columns)));
  const codes = await found.row(`${kernelTensor}.weight`, kernelRow);
  const scale = new Float32Array((await found.row(`${kernelTensor}.weight_scale`, kernelRow)).buffer)[0];
  const differing = expected.codes.findIndex((code, index) => codes[index] !== code);
  const wrong: string[] = [];
  if (scale !== expected.scale)
    wrong.push(`${kernelTensor}.weight_scale[${kernelRow}] is ${scale}, by hand ${expected.scale}`);
  if (codes.length !== expected.codes.length) wrong.push(`${kernelTensor}.weight has ${codes.length} columns`);
  if (differing !== -1) {
    const [is, should] = [codes[differing], expected.codes[differing]];
    wrong.push(`${kernelTensor}.weight[${kernelRow}, ${differing}] is ${is}, by hand ${should}`);
  }
  return wrong;
}

async function copiedDifference(source: TensorRows, found: TensorRows, spot: Spot): Promise<string[]> {
  const expected = await source.row(spot.source, spot.sourceRow, spot.columns);
  const same = Buffer.from(expected).equals(await found.row(spot.kernelTensor, spot.kernelRow));
  return same ? [] : [`${spot.kernelTensor} row ${spot.kernelRow} is not the checkpoint's`];
}
