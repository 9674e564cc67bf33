// Elements as they lie in a checkpoint -> values ready to be encoded, with an eye on those that are not finite; and
// finished bytes -> the half.
#include <cmath>

#include "../digest.h"
#include "numbers.h"
#include "run.h"

namespace layercast {
namespace {

void lower(std::atomic<uint64_t>& lowest, uint64_t value) {
  uint64_t seen = lowest.load(std::memory_order_relaxed);
  while (value < seen && !lowest.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
  }
}

uint64_t element_in_matrix(const TileWork& work, uint64_t in_tile) {
  const uint64_t row = work.tile.first_row + in_tile / work.tile.cols;
  return row * work.spec.op.cols + work.tile.first_col + in_tile % work.tile.cols;
}

/// The slow look at values of which some may be bad; returns their greatest absolute bits, NaNs left out.
uint32_t note_bad(TileWork& work, uint64_t first, uint64_t count, float* values) {
  const bool codes = work.spec.op.scheme != Scheme::none;
  uint32_t greatest = 0;
  for (uint64_t i = 0; i < count; i++) {
    if (!std::isfinite(values[i])) {
      lower(work.state.non_finite, element_in_matrix(work, first + i));
    } else if (work.spec.op.must_be_positive && values[i] <= 0) {
      lower(work.state.not_positive, element_in_matrix(work, first + i));
    }
    if (codes) values[i] = without_infinity(values[i]);
    if (!std::isnan(values[i])) greatest = std::max(greatest, abs_bits(values[i]));
  }
  return greatest;
}

/// The bits of the dtype's infinity, or NaN where there is none.
uint32_t infinity_bits(DType dtype) {
  if (dtype == DType::f8_e4m3) return 0x7Fu;
  if (dtype == DType::bf16) return kInfinityBits >> 16;
  return dtype == DType::f16 ? 0x7C00u : kInfinityBits;
}

Elements elements_at(const TileWork& work, uint64_t first, uint64_t rows, uint64_t cols) {
  const uint8_t* at = work.host + first * dtype_bytes(work.spec.source);
  return {at, work.spec.source, rows, cols, work.tile.cols};
}

bool is_rounded(const OpSpec& spec) { return spec.round != DType::none && spec.round != spec.source; }

}  // namespace

uint32_t place(TileWork& work, uint64_t first, uint64_t count, float* to) {
  const uint8_t* from = elements_at(work, first, 1, count).at;
  const uint32_t greatest = work.vectors.convert(work.spec.source, work.spec.round, from, count, to);
  if (greatest < kInfinityBits && !work.spec.op.must_be_positive) return greatest;
  return note_bad(work, first, count, to);
}

Placed place_rows(TileWork& work, uint64_t first, uint64_t rows, uint64_t cols, float* scratch) {
  const DType source = work.spec.source;
  if (source != DType::f16 && !is_rounded(work.spec) && !work.spec.op.must_be_positive) {
    const Elements elements = elements_at(work, first, rows, cols);
    const uint32_t greatest = work.vectors.greatest(elements);
    if (greatest < infinity_bits(source)) return {elements, source == DType::bf16 ? greatest << 16 : greatest};
  }
  uint32_t amax_bits = 0;
  for (uint64_t row = 0; row < rows; row++) {
    amax_bits = std::max(amax_bits, place(work, first + row * work.tile.cols, cols, scratch + row * cols));
  }
  return {{reinterpret_cast<const uint8_t*>(scratch), DType::f32, rows, cols, cols}, amax_bits};
}

void inspect(TileWork& work, uint64_t first, uint64_t count) {
  const uint32_t greatest = work.vectors.greatest(elements_at(work, first, 1, count));
  if (greatest < infinity_bits(work.spec.source) && !work.spec.op.must_be_positive) return;
  work.lane.values.resize(std::max(work.lane.values.size(), count));
  place(work, first, count, work.lane.values.data());
}

void write_bytes(TileWork& work, uint64_t offset, const void* bytes, uint64_t size) {
  const auto* from = static_cast<const uint8_t*>(bytes);
  work.totals.digest += copy_digested(from, size, work.run.base, offset, work.vectors);
  work.totals.bytes_written += size;
}

void write_elements(TileWork& work, uint64_t first, uint64_t count, const uint8_t* bytes) {
  const Op& op = work.spec.op;
  const uint64_t element_bytes = dtype_bytes(op.out_dtype);
  const bool contiguous = work.tile.cols == op.cols || work.tile.rows == 1;
  const uint64_t run_length = contiguous ? count : work.tile.cols;
  for (uint64_t done = 0; done < count; done += run_length) {
    const uint64_t offset = op.out_offset + element_in_matrix(work, first + done) * element_bytes;
    write_bytes(work, offset, bytes + done * element_bytes, run_length * element_bytes);
  }
}

void write_scales(TileWork& work, uint64_t first, const float* scales, uint64_t count) {
  const uint64_t offset = static_cast<uint64_t>(work.spec.op.scale_offset) + first * sizeof(float);
  write_bytes(work, offset, scales, count * sizeof(float));
}

}  // namespace layercast
