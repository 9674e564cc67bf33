// F32 values -> E4M3 codes, on the device.
#pragma once

#include "chunk.cuh"

namespace layercast {

struct Codes {
  uint32_t words[kChunk / 4];
};

struct Multiplied {
  float factor;
  __device__ __forceinline__ float operator()(float value) const { return value * factor; }
};

/// value / divisor, correctly rounded, for less than a division costs. By Markstein's theorem a quotient that is off by
/// at most one unit in the last place, corrected by the exact remainder and the correctly rounded inverse, is the
/// correctly rounded one; the first correction brings it that near. Nothing overflows, as divisors are at least 2^-18
/// and at most 2^120 and values at most 449 times as large; what underflows becomes a code of zero anyway.
struct Divided {
  float divisor;
  float inverse;

  __device__ __forceinline__ explicit Divided(float divisor) : divisor(divisor), inverse(1.0f / divisor) {}
  __device__ __forceinline__ float operator()(float value) const {
    float quotient = value * inverse;
    quotient = __fmaf_rn(__fmaf_rn(-quotient, divisor, value), inverse, quotient);
    quotient = __fmaf_rn(__fmaf_rn(-quotient, divisor, value), inverse, quotient);
    return copysignf(quotient, value);  // the correction of -0 is +0
  }
};

/// Four codes of finite values.
template <class Scaled>
__device__ __forceinline__ uint32_t encode_finite(const float* values, const Scaled& scaled) {
#if __CUDA_ARCH__ >= 890
  uint16_t low, high;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(scaled(values[1])), "f"(scaled(values[0])));
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(scaled(values[3])), "f"(scaled(values[2])));
  return static_cast<uint32_t>(high) << 16 | low;
#else
  uint32_t word = 0;
#pragma unroll
  for (uint32_t i = 0; i < 4; i++) {
    word |= static_cast<uint32_t>(e4m3_from_scaled(scaled(values[i]), bits_of(values[i]))) << (8 * i);
  }
  return word;
#endif
}

template <class Scaled>
__device__ __forceinline__ uint32_t encode_any(const float* values, const Scaled& scaled) {
  uint32_t word = 0;
#pragma unroll
  for (uint32_t i = 0; i < 4; i++) {
    const float value = without_infinity(values[i]);
    word |= static_cast<uint32_t>(e4m3_from_scaled(scaled(value), bits_of(value))) << (8 * i);
  }
  return word;
}

template <class Scaled>
__device__ __forceinline__ Codes encode(const Values& values, bool finite, const Scaled& scaled) {
  Codes codes;
  if (finite) {
#pragma unroll
    for (uint32_t i = 0; i < kChunk / 4; i++) codes.words[i] = encode_finite(values.of + 4 * i, scaled);
  } else {
#pragma unroll
    for (uint32_t i = 0; i < kChunk / 4; i++) codes.words[i] = encode_any(values.of + 4 * i, scaled);
  }
  return codes;
}

}  // namespace layercast
