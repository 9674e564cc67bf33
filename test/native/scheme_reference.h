// What each scheme makes of numbers, from its definition (docs/kernel-tensors.md): the row that every test of a scheme
// and the conformance suite compare with.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "reference.h"
#include "scheme.h"

namespace layercast::test {

/// In F32, like what it is to be compared with.
struct SchemeReference {
  /// The scale of elements with this greatest absolute value.
  float (*scale)(float amax);
  /// What of a finite value is rounded to E4M3.
  float (*scaled)(float value, float scale);
};

inline float divided(float value, float scale) { return value / scale; }
inline float multiplied(float value, float scale) { return value * (1.0f / scale); }

/// 1 / 448, rounded to F32.
inline constexpr float kReciprocalOf448 = 0x1.24924ap-9f;

/// In the order of their codes.
inline constexpr std::array kSchemeReferences = {
    SchemeReference{nullptr, nullptr},
    SchemeReference{[](float amax) { return std::isinf(1.0f / (amax / 448.0f)) ? 1.0f : amax / 448.0f; }, multiplied},
    SchemeReference{[](float amax) { return std::max(amax / 448.0f, 1.0f / 229376.0f); }, divided},
    SchemeReference{[](float amax) { return std::max(amax, 1e-4f) * kReciprocalOf448; }, multiplied},
};
static_assert(kSchemeReferences.size() == kSchemes.size(), "each scheme has its reference");

inline float scale_reference(Scheme scheme, float amax) {
  return kSchemeReferences[static_cast<size_t>(scheme)].scale(amax);
}

inline uint8_t code_reference(Scheme scheme, float value, float scale) {
  if (std::isnan(value)) return e4m3_reference(value);
  return e4m3_reference(kSchemeReferences[static_cast<size_t>(scheme)].scaled(value, scale));
}

/// Which of the scales of a matrix of `cols` columns is that of an element.
inline uint64_t scale_index_reference(Scheme scheme, uint64_t row, uint64_t col, uint64_t cols) {
  switch (granularity_of(scheme)) {
    case Granularity::none:
    case Granularity::matrix:
      return 0;
    case Granularity::row:
      return row;
    case Granularity::block:
      return row / 128 * ((cols + 127) / 128) + col / 128;
  }
  return 0;
}

}  // namespace layercast::test
