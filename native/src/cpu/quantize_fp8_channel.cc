// fp8-channel: a scale a row. A strip is as many whole rows as fit.
#include "numbers.h"
#include "schemes.h"

namespace layercast {
namespace {

uint64_t strip_rows(const Tile& tile) { return std::min(tile.rows, std::max<uint64_t>(1, kStripElements / tile.cols)); }

Scratch scratch(const TileWork& work) {
  const uint64_t rows = strip_rows(work.tile), elements = rows * work.tile.cols;
  return {.values = elements, .placed = rows, .codes = elements, .scales = rows};
}

void put_rows(TileWork& work, uint64_t first_row, uint64_t rows) {
  const uint64_t cols = work.tile.cols;
  float* values = work.lane.values.data();
  Placed* placed = work.lane.placed.data();
  uint8_t* codes = work.lane.codes.data();
  float* scales = work.lane.scales.data();
  for (uint64_t row = 0; row < rows; row++) {
    placed[row] = place_rows(work, (first_row + row) * cols, 1, cols, values + row * cols);
    scales[row] = channel_scale(placed[row].amax_bits);
  }
  work.totals.place_ns += work.watch.lap_ns();
  for (uint64_t row = 0; row < rows; row++) {
    work.vectors.encode(placed[row].elements, {Scaling::By::divisor, scales[row]}, codes + row * cols, cols);
  }
  work.totals.quantize_ns += work.watch.lap_ns();
  write_elements(work, first_row * cols, rows * cols, codes);
  write_scales(work, work.tile.first_row + first_row, scales, rows);
  work.totals.write_ns += work.watch.lap_ns();
}

void put(TileWork& work) {
  const uint64_t rows = strip_rows(work.tile);
  for (uint64_t row = 0; row < work.tile.rows; row += rows) {
    put_rows(work, row, std::min(rows, work.tile.rows - row));
  }
}

}  // namespace

const SchemeCode kFp8Channel = {scratch, nullptr, put};

}  // namespace layercast
