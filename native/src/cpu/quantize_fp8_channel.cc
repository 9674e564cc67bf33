// fp8-channel: a scale a row. A strip is as many whole rows as fit.
#include "numbers.h"
#include "run.h"

namespace layercast {
namespace {

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

}  // namespace

void put_fp8_channel(TileWork& work) {
  const uint64_t cols = work.tile.cols;
  const uint64_t strip_rows = std::min(work.tile.rows, std::max<uint64_t>(1, kStripElements / cols));
  work.lane.values.resize(std::max(work.lane.values.size(), strip_rows * cols));
  work.lane.placed.resize(std::max(work.lane.placed.size(), strip_rows));
  work.lane.codes.resize(std::max(work.lane.codes.size(), strip_rows * cols));
  work.lane.scales.resize(std::max(work.lane.scales.size(), strip_rows));
  for (uint64_t row = 0; row < work.tile.rows; row += strip_rows) {
    put_rows(work, row, std::min(strip_rows, work.tile.rows - row));
  }
}

}  // namespace layercast
