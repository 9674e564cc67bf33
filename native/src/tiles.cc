#include "tiles.h"

#include <algorithm>

namespace layercast {
namespace {

constexpr uint64_t kTransposedTileBytes = 8 << 20;

struct TileSize {
  uint64_t rows;
  uint64_t cols;
};

TileSize tile_size(const TileLimits& limits, const Op& op, uint64_t element_bytes) {
  const uint64_t row_bytes = op.cols * element_bytes;
  const Granularity granularity = granularity_of(op.scheme);
  if (granularity == Granularity::block) {
    const uint64_t blocks = std::max<uint64_t>(1, limits.band_bytes / (kScaleBlock * kScaleBlock * element_bytes));
    if (blocks * kScaleBlock < op.cols) return {kScaleBlock, blocks * kScaleBlock};
    const uint64_t bands = std::max<uint64_t>(1, limits.band_bytes / (kScaleBlock * row_bytes));
    return {kScaleBlock * (limits.many_bands ? bands : 1), op.cols};
  }
  if (row_bytes <= limits.tile_bytes) return {limits.tile_bytes / row_bytes, op.cols};
  // A row's scale needs all of it; without one, or with one for the whole matrix, a row may be taken in pieces.
  if (granularity == Granularity::row) return {1, op.cols};
  return {1, limits.tile_bytes / element_bytes};
}

/// Of a matrix that is transposed on disk each column of a tile is read by itself: tall tiles make those reads worth
/// their calls.
TileLimits limits_for(TileLimits limits, const LayerProgram& program, const Op& op) {
  if (op.slice_count == 0 || !is_transposed(program.slices[op.first_slice])) return limits;
  limits.tile_bytes = std::max(limits.tile_bytes, kTransposedTileBytes);
  limits.band_bytes = std::max(limits.band_bytes, kTransposedTileBytes);
  return limits;
}

}  // namespace

void cut_tiles(const TileLimits& limits, const LayerProgram& program, uint32_t op_index,
               std::vector<Tile>& tiles) {
  const Op& op = program.ops[op_index];
  if (op.rows == 0 || op.cols == 0) return;
  const TileSize size = tile_size(limits_for(limits, program, op), op, dtype_bytes(source_dtype(program, op)));
  for (uint64_t row = 0; row < op.rows; row += size.rows) {
    const uint64_t rows = std::min(size.rows, op.rows - row);
    for (uint64_t col = 0; col < op.cols; col += size.cols) {
      tiles.push_back({op_index, row, rows, col, std::min(size.cols, op.cols - col)});
    }
  }
}

}  // namespace layercast
