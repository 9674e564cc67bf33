// What is made of a matrix that is finished: some rows of a head, dequantized, perhaps transposed.
#include "../digest.h"
#include "../transpose.h"
#include "numbers.h"
#include "run.h"

namespace layercast {
namespace {

/// Codes of a row that share a scale.
uint64_t cols_of_scale(const Derived& derived, uint64_t col) {
  if (granularity_of(derived.scheme) == Granularity::block) return std::min(kScaleBlock, derived.cols - col);
  return derived.cols;
}

/// A row of the held matrix -> values of the wanted dtype. Where nothing is quantized they are there already.
void take_row(const DeriveWork& work, uint64_t row, uint8_t* to) {
  const Derived& derived = work.derived;
  const uint64_t cols = derived.cols;
  const uint8_t* from = work.run.base + derived.weight_offset + row * cols * dtype_bytes(derived.weight_dtype);
  if (derived.scheme == Scheme::none) {
    std::copy_n(from, cols * dtype_bytes(derived.weight_dtype), to);
    return;
  }
  const auto* scales = reinterpret_cast<const float*>(work.run.base + derived.scale_offset);
  const Granularity granularity = granularity_of(derived.scheme);
  float* values = work.lane.values.data();
  for (uint64_t col = 0; col < cols; col += cols_of_scale(derived, col)) {
    const float scale = scales[scale_index(granularity, row, col, cols)];
    work.vectors.decode(from + col, cols_of_scale(derived, col), scale, values + col);
  }
  work.vectors.narrow(derived.out_dtype, values, cols, to);
}

}  // namespace

void derive(DeriveWork& work) {
  const Derived& derived = work.derived;
  const uint64_t size = dtype_bytes(derived.out_dtype);
  const uint64_t bytes = derived.rows * derived.cols * size;
  std::vector<uint8_t>& taken = work.lane.host;
  std::vector<uint8_t>& turned = work.lane.codes;
  taken.resize(std::max<uint64_t>(taken.size(), bytes));
  work.lane.values.resize(std::max<uint64_t>(work.lane.values.size(), derived.cols));
  const uint64_t first_row = work.head * derived.head_rows + derived.first_row;
  for (uint64_t row = 0; row < derived.rows; row++) {
    take_row(work, first_row + row, taken.data() + row * derived.cols * size);
  }
  const uint8_t* made = taken.data();
  if (derived.transposed) {
    turned.resize(std::max<uint64_t>(turned.size(), bytes));
    transpose(taken.data(), derived.rows, derived.cols, size, turned.data(), derived.rows);
    made = turned.data();
  }
  work.totals.quantize_ns += work.watch.lap_ns();
  const uint64_t offset = derived.out_offset + work.head * bytes;
  work.totals.digest += copy_digested(made, bytes, work.run.base, offset, work.vectors);
  work.totals.bytes_written += bytes;
  work.totals.write_ns += work.watch.lap_ns();
}

}  // namespace layercast
