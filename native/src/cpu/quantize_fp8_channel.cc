// fp8-channel: a scale a row. A strip is as many whole rows as fit.
#include "numbers.h"
#include "run.h"

namespace layercast {
namespace {

constexpr float kLeastScale = 1.0f / (448.0f * 512.0f);

float channel_scale(uint32_t amax_bits) { return std::max(float_of(amax_bits) / 448.0f, kLeastScale); }

void put_rows(TileWork& work, uint64_t first_row, uint64_t rows) {
  const uint64_t cols = work.tile.cols;
  float* values = work.lane.values.data();
  uint8_t* codes = work.lane.codes.data();
  float* scales = work.lane.scales.data();
  for (uint64_t row = 0; row < rows; row++) {
    scales[row] = channel_scale(place(work, (first_row + row) * cols, cols, values + row * cols));
  }
  work.totals.place_ns += work.watch.lap_ns();
  for (uint64_t row = 0; row < rows; row++) {
    encode_divided(values + row * cols, cols, scales[row], codes + row * cols);
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
  work.lane.codes.resize(std::max(work.lane.codes.size(), strip_rows * cols));
  work.lane.scales.resize(std::max(work.lane.scales.size(), strip_rows));
  for (uint64_t row = 0; row < work.tile.rows; row += strip_rows) {
    put_rows(work, row, std::min(strip_rows, work.tile.rows - row));
  }
}

}  // namespace layercast
