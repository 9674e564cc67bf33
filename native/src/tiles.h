// Cuts an op's matrix into tiles: what one thread reads at once, small enough for its cache, large enough for a read to
// be worth its call (as the backend says), and never through what shares a scale (a row, a scale block).
#pragma once

#include <vector>

#include "backend.h"
#include "layer_program.h"

namespace layercast {

/// Appends the tiles of program.ops[op], in the order of its rows.
void cut_tiles(const TileLimits& limits, const LayerProgram& program, uint32_t op, std::vector<Tile>& tiles);

}  // namespace layercast
