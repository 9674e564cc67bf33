#include "values.h"

#include <cmath>
#include <cstring>

#include "cpu/numbers.h"

namespace layercast::conformance {
namespace {

struct Layout {
  uint32_t sign;
  uint32_t infinity;  // every exponent bit
};

Layout layout_of(DType dtype) {
  if (dtype == DType::bf16) return {0x8000u, 0x7F80u};
  if (dtype == DType::f16) return {0x8000u, 0x7C00u};
  return {0x80000000u, 0x7F800000u};
}

uint32_t below(std::mt19937& random, uint32_t limit) { return static_cast<uint32_t>(random() % limit); }

uint32_t random_sign(std::mt19937& random, DType dtype) { return random() & 1 ? layout_of(dtype).sign : 0; }

/// The lowest exponent's step: below it numbers are subnormal.
uint32_t least_normal(DType dtype) {
  const uint32_t infinity = layout_of(dtype).infinity;
  return infinity & (~infinity + 1);
}

uint32_t spread(std::mt19937& random, DType dtype, uint64_t, uint64_t) {
  const float exponent = std::uniform_real_distribution<float>(-30, 12)(random);
  return bits_in(dtype, random() % 16 == 0 ? 0.0f : std::exp2(exponent)) | random_sign(random, dtype);
}

uint32_t weights(std::mt19937& random, DType dtype, uint64_t, uint64_t) {
  return bits_in(dtype, std::normal_distribution<float>(0.0f, 0.02f)(random));
}

uint32_t zeros(std::mt19937&, DType, uint64_t, uint64_t) { return 0; }

uint32_t signed_zeros(std::mt19937& random, DType dtype, uint64_t, uint64_t) { return random_sign(random, dtype); }

uint32_t subnormals(std::mt19937& random, DType dtype, uint64_t, uint64_t) {
  return below(random, least_normal(dtype)) | random_sign(random, dtype);
}

uint32_t huge(std::mt19937& random, DType dtype, uint64_t, uint64_t) {
  return (layout_of(dtype).infinity - 1 - below(random, least_normal(dtype))) | random_sign(random, dtype);
}

/// With 448 in each row and scale block, so that their scale is 1: halfway between two codes, or just beside.
uint32_t ties(std::mt19937& random, DType dtype, uint64_t row, uint64_t col) {
  if (col % 128 == 0) return bits_in(dtype, 448.0f) | (row % 2 ? layout_of(dtype).sign : 0);
  const float sixteenths = 17.0f + 2 * static_cast<float>(below(random, 8));
  const float tie = std::ldexp(sixteenths, static_cast<int>(below(random, 19)) - 15);
  return (bits_in(dtype, tie > 448 ? 448 : tie) + below(random, 3) - 1) | random_sign(random, dtype);
}

uint32_t non_finite(std::mt19937& random, DType dtype, uint64_t row, uint64_t col) {
  const uint32_t kind = below(random, 24);
  const Layout layout = layout_of(dtype);
  if (kind == 0) return layout.infinity | random_sign(random, dtype);
  if (kind == 1) return (layout.infinity + 1 + below(random, least_normal(dtype) - 1)) | random_sign(random, dtype);
  return spread(random, dtype, row, col);
}

uint32_t one_nan(std::mt19937& random, DType dtype, uint64_t row, uint64_t col) {
  if ((row * 31 + col * 7) % 1009 == 13) return layout_of(dtype).infinity | layout_of(dtype).sign | 1;
  return weights(random, dtype, row, col);
}

uint32_t any_bits(std::mt19937& random, DType dtype, uint64_t, uint64_t) {
  const auto bits = static_cast<uint32_t>(random());
  return dtype == DType::f32 ? bits : bits & 0xFFFFu;
}

/// Rounding to F16 makes infinities and subnormals of some.
uint32_t edge_of_f16(std::mt19937& random, DType dtype, uint64_t, uint64_t) {
  const float edges[] = {65504.0f, 65519.0f, 65520.0f, 65536.0f, 0x1p-14f, 0x1p-24f, 0x1p-25f, 0x1.8p-24f};
  return (bits_in(dtype, edges[below(random, 8)]) + below(random, 3)) | random_sign(random, dtype);
}

/// The greatest of each scale block is just below, at or just above 0.0001, the least amax that fp8-block counts with.
uint32_t least_amax(std::mt19937& random, DType dtype, uint64_t row, uint64_t col) {
  const uint32_t greatest = bits_in(dtype, 1e-4f) + static_cast<uint32_t>((row / 128 + col / 128) % 3) - 1;
  return (row % 128 == col % 128 ? greatest : below(random, greatest + 1)) | random_sign(random, dtype);
}

/// Zeros below and to the right of what is there, as where experts are made up to whole scale blocks.
uint32_t padded(std::mt19937& random, DType dtype, uint64_t row, uint64_t col) {
  return row % 128 < 70 && col % 192 < 130 ? weights(random, dtype, row, col) : 0;
}

constexpr ValueClass kClasses[] = {
    {"spread", spread},         {"weights", weights},         {"zeros", zeros},       {"signed zeros", signed_zeros},
    {"subnormals", subnormals}, {"huge", huge},               {"ties", ties},         {"non-finite", non_finite},
    {"one NaN", one_nan},       {"edge of F16", edge_of_f16}, {"any bits", any_bits},
    {"least amax", least_amax}, {"padded", padded},
};

}  // namespace

std::span<const ValueClass> value_classes() { return kClasses; }

uint32_t bits_in(DType dtype, float value) {
  if (dtype == DType::bf16) return bf16_from_float(value);
  if (dtype == DType::f16) return f16_from_float(value);
  return bits_of(value);
}

ByteVector matrix_of(const ValueClass& values, DType dtype, uint64_t rows, uint64_t cols, uint32_t seed) {
  std::mt19937 random(seed);
  const uint64_t size = dtype_bytes(dtype);
  ByteVector matrix(rows * cols * size);
  for (uint64_t element = 0; element < rows * cols; element++) {
    const uint32_t bits = values.bits(random, dtype, element / cols, element % cols);
    std::memcpy(&matrix[element * size], &bits, size);
  }
  return matrix;
}

}  // namespace layercast::conformance
