// The programs of a checkpoint on disk, for any of a plan's layers: what a rank that loads them whole is given.

import type { ArenaLayout, KernelTensor, Layout, Source } from "../../orchestrator/contract/plan.js";
import { makeProgram, type ResolvedProgram } from "../../orchestrator/program/make-program.js";
import { layerGeometry, placesOf } from "../../orchestrator/program/rank-geometry.js";
import { inCheckpoint, wholeMatrices } from "../../orchestrator/program/resolve.js";

interface ProgramRequest {
  /** Indexes into Layout.layers. */
  layers: readonly number[];
  rank: number;
  phase: KernelTensor["phase"];
  allowNonFinite: boolean;
}

export function createResolver(layout: Layout, arena: ArenaLayout) {
  const places = placesOf(arena);
  return (source: Source, request: ProgramRequest): ResolvedProgram => {
    const geometries = request.layers.map((layer) => layerGeometry(layout, places, layer, request));
    const derived = geometries.flatMap((geometry) => geometry.derived);
    return makeProgram(geometries.flatMap(wholeMatrices), derived, inCheckpoint(source, request.allowNonFinite));
  };
}
