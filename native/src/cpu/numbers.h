// The numbers, one value at a time, for the CPU and for GPU kernels: F32 <-> BF16 and F16 to nearest even, F32 <-> E4M3
// ("fn": largest 448, no infinity), and the recipes' scales. No branches, integers where rounding happens, so that
// loops over them become vector code that gives the same bits on every machine. A NaN keeps its sign and becomes quiet.
#pragma once

#include <bit>
#include <cstdint>

#ifdef __CUDACC__
#define LAYERCAST_HOST_DEVICE __host__ __device__
#else
#define LAYERCAST_HOST_DEVICE
#endif

namespace layercast {

inline constexpr uint32_t kAbsMask = 0x7FFFFFFFu;
inline constexpr uint32_t kInfinityBits = 0x7F800000u;
inline constexpr uint32_t kLargestFiniteBits = 0x7F7FFFFFu;

LAYERCAST_HOST_DEVICE inline uint32_t bits_of(float value) { return std::bit_cast<uint32_t>(value); }
LAYERCAST_HOST_DEVICE inline float float_of(uint32_t bits) { return std::bit_cast<float>(bits); }
LAYERCAST_HOST_DEVICE inline uint32_t abs_bits(float value) { return bits_of(value) & kAbsMask; }

LAYERCAST_HOST_DEVICE inline float float_from_bf16(uint16_t value) {
  return float_of(static_cast<uint32_t>(value) << 16);
}

LAYERCAST_HOST_DEVICE inline uint16_t bf16_from_float(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1)) >> 16;
  const uint32_t quiet_nan = ((bits >> 16) & 0x8000u) | 0x7FC0u;
  return static_cast<uint16_t>((bits & kAbsMask) > kInfinityBits ? quiet_nan : rounded);
}

LAYERCAST_HOST_DEVICE inline float float_from_f16(uint16_t value) {
  const uint32_t magnitude = static_cast<uint32_t>(value & 0x7FFFu) << 13;
  const uint32_t sign = static_cast<uint32_t>(value & 0x8000u) << 16;
  const uint32_t normal = magnitude + (112u << 23);
  // 2^-14 with the subnormal's digits behind it, less 2^-14: exact.
  const uint32_t subnormal = bits_of(float_of(magnitude + (113u << 23)) - 0x1p-14f);
  const uint32_t special = magnitude > (31u << 23) ? 0x7FC00000u : kInfinityBits;
  const uint32_t finite = magnitude < (1u << 23) ? subnormal : normal;
  return float_of(sign | (magnitude >= (31u << 23) ? special : finite));
}

LAYERCAST_HOST_DEVICE inline uint16_t f16_from_float(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t magnitude = bits & kAbsMask;
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t normal = (magnitude - (112u << 23) + 0xFFFu + ((magnitude >> 13) & 1)) >> 13;
  // Adding 0.5 leaves the value in units of 2^-24, rounded to nearest even by the addition.
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  const uint32_t finite = magnitude < (113u << 23) ? subnormal : normal;
  const uint32_t special = magnitude > kInfinityBits ? 0x7E00u : 0x7C00u;
  // From 65520, halfway past the largest, on: infinity.
  return static_cast<uint16_t>(sign | (magnitude >= 0x477FF000u ? special : finite));
}

/// NaN is 0x7F and 0xFF.
LAYERCAST_HOST_DEVICE inline float float_from_e4m3(uint8_t code) {
  const uint32_t magnitude = static_cast<uint32_t>(code & 0x7Fu) << 20;
  const uint32_t sign = static_cast<uint32_t>(code & 0x80u) << 24;
  const uint32_t normal = magnitude + (120u << 23);
  // 2^-6 with the subnormal's digits behind it, less 2^-6: exact.
  const uint32_t subnormal = bits_of(float_of(magnitude + (121u << 23)) - 0x1p-6f);
  const uint32_t finite = magnitude < (1u << 23) ? subnormal : normal;
  return float_of(sign | (magnitude == (0x7Fu << 20) ? 0x7FC00000u : finite));
}

/// 2^(code - 127), down to the subnormal 2^-127; NaN is 0xFF.
LAYERCAST_HOST_DEVICE inline float float_from_e8m0(uint8_t code) {
  const uint32_t normal = static_cast<uint32_t>(code) << 23;
  const uint32_t finite = code == 0 ? 1u << 22 : normal;
  return float_of(code == 0xFF ? 0x7FC00000u : finite);
}

/// The value of a code. A NaN has the code's sign: that of a product that is none differs from machine to machine.
LAYERCAST_HOST_DEVICE inline float scaled_e4m3(uint8_t code, float scale) {
  const uint32_t bits = bits_of(float_from_e4m3(code) * scale);
  const uint32_t quiet_nan = static_cast<uint32_t>(code & 0x80u) << 24 | 0x7FC00000u;
  return float_of((bits & kAbsMask) > kInfinityBits ? quiet_nan : bits);
}

/// Rounds `scaled` to E4M3, saturating. Sign and NaN come from the bits of the value before scaling, because what a
/// division makes of a NaN differs from machine to machine.
LAYERCAST_HOST_DEVICE inline uint8_t e4m3_from_scaled(float scaled, uint32_t value_bits) {
  const uint32_t largest = bits_of(448.0f);
  const uint32_t magnitude = abs_bits(scaled) < largest ? abs_bits(scaled) : largest;
  const uint32_t normal = ((magnitude + 0x7FFFFu + ((magnitude >> 20) & 1)) >> 20) - (120u << 3);
  // Adding 2^14 leaves the value in units of 2^-9, rounded to nearest even by the addition.
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0x1p14f) - bits_of(0x1p14f);
  const uint32_t finite = magnitude < (121u << 23) ? subnormal : normal;
  const uint32_t code = (value_bits & kAbsMask) > kInfinityBits ? 0x7Fu : finite;
  return static_cast<uint8_t>(((value_bits >> 24) & 0x80u) | code);
}

/// An F32 that is written as it is, apart from a NaN's digits.
LAYERCAST_HOST_DEVICE inline float quiet(float value) {
  const uint32_t quiet_nan = (bits_of(value) & ~kAbsMask) | 0x7FC00000u;
  return abs_bits(value) > kInfinityBits ? float_of(quiet_nan) : value;
}

/// An infinity that is to become a code counts as the largest finite value.
LAYERCAST_HOST_DEVICE inline float without_infinity(float value) {
  const uint32_t largest = (bits_of(value) & ~kAbsMask) | kLargestFiniteBits;
  return abs_bits(value) == kInfinityBits ? float_of(largest) : value;
}

// Scales, from the bits of the greatest absolute value.

LAYERCAST_HOST_DEVICE inline float tensor_scale(uint32_t amax_bits) {
  const float scale = float_of(amax_bits) / 448.0f;
  return abs_bits(1.0f / scale) < kInfinityBits ? scale : 1.0f;
}

LAYERCAST_HOST_DEVICE inline float channel_scale(uint32_t amax_bits) {
  const float least = 1.0f / (448.0f * 512.0f);
  const float scale = float_of(amax_bits) / 448.0f;
  return scale > least ? scale : least;
}

LAYERCAST_HOST_DEVICE inline float block_scale(uint32_t amax_bits) {
  const float least = 1e-4f;
  const float amax = float_of(amax_bits);
  return (amax > least ? amax : least) * (1.0f / 448.0f);  // no division: engines multiply by the constant's reciprocal
}

}  // namespace layercast
