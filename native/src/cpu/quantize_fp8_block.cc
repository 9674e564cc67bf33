// fp8-block: a scale for each 128 by 128 elements. A strip is one scale block; the tile's codes are written together,
// so that they go out in long runs.
#include "numbers.h"
#include "schemes.h"

namespace layercast {
namespace {

Scratch scratch(const TileWork& work) {
  const Tile& tile = work.tile;
  return {.values = kScaleBlock * kScaleBlock,
          .codes = tile.rows * tile.cols,
          .scales = ceil_div(tile.cols, kScaleBlock)};
}

/// Quantizes the scale block that begins at the tile's column `first_col`; returns its scale.
float put_block(TileWork& work, uint64_t first_col) {
  const uint64_t cols = std::min(kScaleBlock, work.tile.cols - first_col);
  const Placed block = place_rows(work, first_col, work.tile.rows, cols, work.lane.values.data());
  work.totals.place_ns += work.watch.lap_ns();
  const float scale = block_scale(block.amax_bits);
  const Scaling scaling = {Scaling::By::factor, 1.0f / scale};
  work.vectors.encode(block.elements, scaling, work.lane.codes.data() + first_col, work.tile.cols);
  work.totals.quantize_ns += work.watch.lap_ns();
  return scale;
}

void put(TileWork& work) {
  const Tile& tile = work.tile;
  const uint64_t blocks = ceil_div(tile.cols, kScaleBlock);
  for (uint64_t block = 0; block < blocks; block++) {
    work.lane.scales[block] = put_block(work, block * kScaleBlock);
  }
  const uint64_t first = scale_index(Granularity::block, tile.first_row, tile.first_col, work.spec.op.cols);
  write_elements(work, 0, tile.rows * tile.cols, work.lane.codes.data());
  write_scales(work, first, work.lane.scales.data(), blocks);
  work.totals.write_ns += work.watch.lap_ns();
}

}  // namespace

const SchemeCode kFp8Block = {scratch, nullptr, put};

}  // namespace layercast
