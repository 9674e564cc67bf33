// The loops of vector_code.h that find the greatest element, convert to F32, decode to it and narrow from it.
#pragma once

#include "vector_code.h"
#include "vector_lanes.h"

namespace layercast {
namespace {

template <class L, class Lane>
uint32_t greatest_of(const Elements& elements) {
  constexpr uint64_t kLaneBytes = sizeof(Lane);
  const auto mask = L::set32(kLaneBytes == 4 ? kMagnitudeMask : kLaneBytes == 2 ? 0x7FFF7FFFu : 0x7F7F7F7Fu);
  auto greatest = L::set32(0);
  for (uint64_t row = 0; row < elements.rows; row++) {
    const uint8_t* from = elements.at + row * elements.stride * sizeof(Lane);
    each_vector<L>(from, elements.cols * sizeof(Lane), [&](auto signed_bits) {
      const auto bits = L::bit_and(signed_bits, mask);
      if constexpr (kLaneBytes == 4) greatest = L::max32(greatest, bits);
      if constexpr (kLaneBytes == 2) greatest = L::max16(greatest, bits);
      if constexpr (kLaneBytes == 1) greatest = L::max8(greatest, bits);
    });
  }
  return greatest_lane<Lane, L>(greatest);
}

template <class L>
uint32_t greatest(const Elements& elements) {
  if (elements.dtype == DType::f8_e4m3) return greatest_of<L, uint8_t>(elements);
  return elements.dtype == DType::f32 ? greatest_of<L, uint32_t>(elements) : greatest_of<L, uint16_t>(elements);
}

/// The one NaN of each sign that the CPU makes, where `value` is a NaN; else `bits`.
template <class L>
typename L::Ints or_quiet_nan(typename L::Ints bits, typename L::Floats value) {
  const auto sign = L::bit_and(L::as_ints(value), L::set32(~kMagnitudeMask));
  return L::select_nan(value, L::bit_or(sign, L::set32(0x7FC00000u)), bits);
}

/// BF16 in the upper halves.
template <class L>
typename L::Ints round_bf16(typename L::Floats value) {
  const auto bits = L::as_ints(value);
  const auto odd = L::bit_and(L::template right32<16>(bits), L::set32(1));
  const auto rounded = L::add32(L::add32(bits, L::set32(0x7FFFu)), odd);
  return or_quiet_nan<L>(L::bit_and(rounded, L::set32(0xFFFF0000u)), value);
}

template <class L>
typename L::Floats quiet(typename L::Floats value) {
  return L::as_floats(or_quiet_nan<L>(L::as_ints(value), value));
}

/// As float_from_e4m3 of numbers.h, of codes in the lowest bytes.
template <class L>
typename L::Floats floats_of_e4m3(typename L::Ints codes) {
  constexpr uint32_t kNan = 0x7Fu << 20;
  const auto magnitude = L::template left32<20>(L::bit_and(codes, L::set32(0x7Fu)));
  const auto sign = L::template left32<24>(L::bit_and(codes, L::set32(0x80u)));
  const auto normal = L::add32(magnitude, L::set32(120u << 23));
  const auto above = L::as_floats(L::add32(magnitude, L::set32(121u << 23)));
  const auto subnormal = L::as_ints(L::add_floats(above, L::set_float(-0x1p-6f)));
  const auto finite = L::select32_less(magnitude, L::set32(1u << 23), subnormal, normal);
  return L::as_floats(L::bit_or(sign, L::select32_less(magnitude, L::set32(kNan), finite, L::set32(0x7FC00000u))));
}

template <class L, DType kSource>
typename L::Floats load_floats(const uint8_t* from) {
  if constexpr (kSource == DType::bf16) return L::floats_of_bf16(L::load_halves(from));
  if constexpr (kSource == DType::f16) return quiet<L>(L::floats_of_f16(L::load_halves(from)));
  if constexpr (kSource == DType::f32) return L::as_floats(L::load(from));
  if constexpr (kSource == DType::f8_e4m3) return floats_of_e4m3<L>(L::load_bytes(from));
}

template <class L, DType kRound>
typename L::Floats round_floats(typename L::Floats value) {
  if constexpr (kRound == DType::bf16) return L::as_floats(round_bf16<L>(value));
  if constexpr (kRound == DType::f16) return quiet<L>(L::floats_of_f16(L::f16_of(value)));
  return value;
}

template <class L, DType kSource, DType kRound>
uint32_t convert_as(const uint8_t* from, uint64_t count, float* to) {
  const auto mask = L::set32(kMagnitudeMask);
  auto greatest = L::set32(0);
  const auto step = [&](const uint8_t* lanes, uint8_t* out) {
    const auto bits = L::as_ints(round_floats<L, kRound>(load_floats<L, kSource>(lanes)));
    L::store(out, bits);
    greatest = L::max32(greatest, L::bit_and(bits, mask));
  };
  map_lanes<L::kBytes / 4, dtype_bytes(kSource), 4>(from, count, reinterpret_cast<uint8_t*>(to), step);
  return greatest_lane<uint32_t, L>(greatest);
}

template <class L, DType kSource>
uint32_t convert_from(DType round, const uint8_t* from, uint64_t count, float* to) {
  if (round == DType::bf16 && kSource != DType::bf16) return convert_as<L, kSource, DType::bf16>(from, count, to);
  if (round == DType::f16 && kSource != DType::f16) return convert_as<L, kSource, DType::f16>(from, count, to);
  return convert_as<L, kSource, DType::none>(from, count, to);
}

template <class L>
uint32_t convert(DType source, DType round, const uint8_t* from, uint64_t count, float* to) {
  if (source == DType::bf16) return convert_from<L, DType::bf16>(round, from, count, to);
  if (source == DType::f16) return convert_from<L, DType::f16>(round, from, count, to);
  if (source == DType::f8_e4m3) return convert_as<L, DType::f8_e4m3, DType::none>(from, count, to);
  return convert_from<L, DType::f32>(round, from, count, to);
}

template <class L>
void decode(const uint8_t* codes, uint64_t count, float scale, float* to) {
  const auto scales = L::set_float(scale);
  map_lanes<L::kBytes / 4, 1, 4>(codes, count, reinterpret_cast<uint8_t*>(to), [&](const uint8_t* lanes, uint8_t* out) {
    const auto value = floats_of_e4m3<L>(L::load_bytes(lanes));
    const auto product = L::mul_floats(value, scales);
    const auto sign = L::bit_and(L::as_ints(value), L::set32(~kMagnitudeMask));
    const auto quiet_nan = L::bit_or(sign, L::set32(0x7FC00000u));
    L::store(out, L::select_nan(product, quiet_nan, L::as_ints(product)));
  });
}

template <class L>
void narrow(DType dtype, const float* values, uint64_t count, uint8_t* to) {
  const auto load = [](const uint8_t* from) { return L::as_floats(L::load(from)); };
  const auto* from = reinterpret_cast<const uint8_t*>(values);
  constexpr uint64_t kLanes = L::kBytes / 4;
  if (dtype == DType::bf16) {
    map_lanes<kLanes, 4, 2>(from, count, to, [&](const uint8_t* lanes, uint8_t* out) {
      L::store_halves(out, L::upper_halves(round_bf16<L>(load(lanes))));
    });
  } else if (dtype == DType::f16) {
    map_lanes<kLanes, 4, 2>(from, count, to, [&](const uint8_t* lanes, uint8_t* out) {
      // What the instruction leaves of a NaN's digits depends on the NaN.
      L::store_halves(out, L::f16_of(quiet<L>(load(lanes))));
    });
  } else {
    map_lanes<kLanes, 4, 4>(from, count, to, [&](const uint8_t* lanes, uint8_t* out) {
      L::store(out, L::as_ints(quiet<L>(load(lanes))));
    });
  }
}

}  // namespace
}  // namespace layercast
