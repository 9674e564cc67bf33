// Elements as they lie in a checkpoint -> F32 values rounded to the requested dtype, with an eye on those that are not
// finite; and finished bytes -> the half.
#include <cmath>
#include <cstring>

#include "../digest.h"
#include "numbers.h"
#include "run.h"
#include "vector_code.h"

namespace layercast {
namespace {

template <class T>
T load(const uint8_t* from, uint64_t index) {
  T value;
  std::memcpy(&value, from + index * sizeof value, sizeof value);
  return value;
}

template <DType kSource>
float load_value(const uint8_t* from, uint64_t index) {
  if constexpr (kSource == DType::bf16) return float_from_bf16(load<uint16_t>(from, index));
  if constexpr (kSource == DType::f16) return float_from_f16(load<uint16_t>(from, index));
  if constexpr (kSource == DType::f32) return load<float>(from, index);
}

template <DType kRound>
float round_value(float value) {
  if constexpr (kRound == DType::bf16) return float_from_bf16(bf16_from_float(value));
  if constexpr (kRound == DType::f16) return float_from_f16(f16_from_float(value));
  return value;
}

template <DType kSource, DType kRound>
uint32_t convert(const uint8_t* from, uint64_t count, float* to) {
  int32_t greatest = 0;  // signed: absolute bits fit, and every vector unit compares signed integers
  for (uint64_t i = 0; i < count; i++) {
    const float value = round_value<kRound>(load_value<kSource>(from, i));
    to[i] = value;
    greatest = std::max(greatest, static_cast<int32_t>(abs_bits(value)));
  }
  return static_cast<uint32_t>(greatest);
}

template <DType kSource>
uint32_t convert_rounded(DType round, const uint8_t* from, uint64_t count, float* to) {
  if (round == DType::bf16 && kSource != DType::bf16) return convert<kSource, DType::bf16>(from, count, to);
  if (round == DType::f16 && kSource != DType::f16) return convert<kSource, DType::f16>(from, count, to);
  return convert<kSource, DType::none>(from, count, to);
}

LAYERCAST_VECTOR_CODE uint32_t convert_from(const OpSpec& spec, const uint8_t* from, uint64_t count, float* to) {
  switch (spec.source) {
    case DType::bf16:
      return convert_rounded<DType::bf16>(spec.round, from, count, to);
    case DType::f16:
      return convert_rounded<DType::f16>(spec.round, from, count, to);
    default:
      return convert_rounded<DType::f32>(spec.round, from, count, to);
  }
}

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
    if (codes && std::isinf(values[i])) values[i] = std::copysign(float_of(kLargestFiniteBits), values[i]);
    if (!std::isnan(values[i])) greatest = std::max(greatest, abs_bits(values[i]));
  }
  return greatest;
}

template <class T>
uint32_t greatest_bits(const uint8_t* from, uint64_t count) {
  using Signed = std::make_signed_t<T>;
  constexpr T kAbs = static_cast<T>(~T{0}) >> 1;
  Signed greatest = 0;
  for (uint64_t i = 0; i < count; i++) {
    greatest = std::max(greatest, static_cast<Signed>(load<T>(from, i) & kAbs));
  }
  return static_cast<uint32_t>(greatest);
}

LAYERCAST_VECTOR_CODE bool all_finite(DType source, const uint8_t* from, uint64_t count) {
  if (source == DType::bf16) return greatest_bits<uint16_t>(from, count) < (kInfinityBits >> 16);
  if (source == DType::f16) return greatest_bits<uint16_t>(from, count) < 0x7C00u;
  return greatest_bits<uint32_t>(from, count) < kInfinityBits;
}

const uint8_t* host_at(const TileWork& work, uint64_t element) {
  return work.host + element * dtype_bytes(work.spec.source);
}

}  // namespace

uint32_t place(TileWork& work, uint64_t first, uint64_t count, float* to) {
  const uint32_t greatest = convert_from(work.spec, host_at(work, first), count, to);
  if (greatest < kInfinityBits && !work.spec.op.must_be_positive) return greatest;
  return note_bad(work, first, count, to);
}

void inspect(TileWork& work, uint64_t first, uint64_t count) {
  if (all_finite(work.spec.source, host_at(work, first), count) && !work.spec.op.must_be_positive) return;
  work.lane.values.resize(std::max(work.lane.values.size(), count));
  place(work, first, count, work.lane.values.data());
}

void write_bytes(TileWork& work, uint64_t offset, const void* bytes, uint64_t size) {
  std::memcpy(work.run.base + offset, bytes, size);
  work.totals.digest += digest_bytes(static_cast<const uint8_t*>(bytes), offset, size);
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
