// The loops of vector_code.h that make E4M3 codes.
//
// BF16 is the case that counts. Its codes are found by bytes, four times as many at once as by F32. A value is an
// exponent and a mantissa of 7 bits; where the code is a normal number, the next exponent adds 8 to it and nothing else
// changes. So the 128 codes of one exponent, made the long way, tell all others. They grow by 8 over the 128 mantissas,
// each code at least 8 mantissas long: of 8 neighbours, one at the most begins a new code. So 128 codes fit into two
// tables of 16 bytes: the first code of each 8, and how many of them have it. The other codes are few, 0 to 8. There a
// code is how many of 8 bounds the magnitude is past.
#pragma once

#include "vector_code.h"
#include "vector_convert.h"
#include "vector_lanes.h"

namespace layercast {
namespace {

constexpr uint32_t kExponentMask = 0x7F800000u;
constexpr uint8_t kGreatestCode = 0x7E;
constexpr uint8_t kNanCode = 0x7F;

// The long way: by F32

/// As e4m3_from_scaled of numbers.h, in the lower bytes. A sum with 2^20 times the value's power of two, or that of the
/// least normal number, keeps three binary digits after that power and is rounded to nearest even by the addition.
template <class L>
typename L::Ints e4m3(typename L::Floats scaled, typename L::Floats value) {
  constexpr uint32_t kLargest = 0x43E00000u;    // 448
  constexpr uint32_t kLeastPower = 121u << 23;  // 2^-6
  constexpr uint32_t kTimes2To20 = 20u << 23;
  const auto magnitude = L::min32(L::bit_and(L::as_ints(scaled), L::set32(kMagnitudeMask)), L::set32(kLargest));
  const auto power = L::max32(L::bit_and(magnitude, L::set32(kExponentMask)), L::set32(kLeastPower));
  const auto large = L::add32(power, L::set32(kTimes2To20));
  const auto sum = L::as_ints(L::add_floats(L::as_floats(magnitude), L::as_floats(large)));
  const auto digits = L::sub32(sum, large);
  const auto exponent = L::template right32<20>(L::sub32(power, L::set32(kLeastPower)));
  const auto code = L::add32(digits, exponent);
  const auto sign = L::bit_and(L::template right32<24>(L::as_ints(value)), L::set32(0x80u));
  return L::bit_or(L::select_nan(value, L::set32(kNanCode), code), sign);
}

template <class L, DType kSource, Scaling::By kBy>
typename L::Ints encode_floats(const uint8_t* from, typename L::Floats number) {
  const auto value = load_floats<L, kSource>(from);
  return e4m3<L>(kBy == Scaling::By::factor ? L::mul_floats(value, number) : L::div_floats(value, number), value);
}

/// A vector of codes.
template <class L, DType kSource, Scaling::By kBy>
typename L::Ints encode_vector(const uint8_t* from, typename L::Floats number) {
  constexpr uint64_t kStep = L::kBytes / 4 * (kSource == DType::f32 ? 4 : 2);
  return L::bytes_of(encode_floats<L, kSource, kBy>(from, number),
                     encode_floats<L, kSource, kBy>(from + kStep, number),
                     encode_floats<L, kSource, kBy>(from + 2 * kStep, number),
                     encode_floats<L, kSource, kBy>(from + 3 * kStep, number));
}

template <class L, DType kSource, Scaling::By kBy>
void encode_long(const Elements& elements, float number, uint8_t* codes, uint64_t codes_stride) {
  constexpr uint64_t kElementBytes = kSource == DType::f32 ? 4 : 2;
  const auto numbers = L::set_float(number);
  for (uint64_t row = 0; row < elements.rows; row++) {
    const uint8_t* from = elements.at + row * elements.stride * kElementBytes;
    map_lanes<L::kBytes, kElementBytes, 1>(
        from, elements.cols, codes + row * codes_stride, [&](const uint8_t* lanes, uint8_t* out) {
          L::store(out, encode_vector<L, kSource, kBy>(lanes, numbers));
        });
  }
}

// The short way of BF16: by bytes

constexpr uint32_t kSmallCodes = 8;  // past 0: the subnormal ones, and the first normal one

/// What the codes of all BF16 follow from, for one scaling.
struct Bf16Codes {
  uint32_t exponent;  // biased; of its 128 values, in groups of 8:
  alignas(16) uint8_t first[16];
  alignas(16) uint8_t count_less_1[16];
  uint16_t greatest_below[kSmallCodes];  // magnitudes
};

/// The biased exponent whose values are scaled to about 1; less than 8 or more than 254 if there is none to go by.
template <Scaling::By kBy>
uint32_t exponent_to_1(float number) {
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  const uint32_t exponent = bits >> 23;  // with the sign: a negative number has none
  return kBy == Scaling::By::factor ? 254 - exponent : exponent;
}

template <class L, Scaling::By kBy>
void tabulate_normal(float number, Bf16Codes& table) {
  alignas(64) uint16_t values[128];
  for (uint32_t mantissa = 0; mantissa < 128; mantissa++) {
    values[mantissa] = static_cast<uint16_t>(table.exponent << 7 | mantissa);
  }
  alignas(64) uint8_t codes[128];
  alignas(64) uint64_t sums[16];
  for (uint64_t i = 0; i < 128; i += L::kBytes) {
    const auto* from = reinterpret_cast<const uint8_t*>(values + i);
    const auto vector = encode_vector<L, DType::bf16, kBy>(from, L::set_float(number));
    L::store(codes + i, vector);
    L::store(sums + i / 8, L::sums_of_8(vector));
  }
  for (uint32_t group = 0; group < 16; group++) {
    const uint64_t first = codes[uint64_t{8} * group];
    table.first[group] = static_cast<uint8_t>(first);
    table.count_less_1[group] = static_cast<uint8_t>(7 - (sums[group] - 8 * first));  // each later one adds 1
  }
}

template <class L, Scaling::By kBy>
void tabulate_small(float number, Bf16Codes& table) {
  alignas(64) uint16_t values[L::kBytes] = {};
  for (uint32_t i = 0; i < kSmallCodes; i++) {
    // Half way to the code, give or take an F32's last digit: at the most one BF16 too high or too low.
    const float half_way = (static_cast<float>(i) + 0.5f) * 0x1p-9f;
    const float value = kBy == Scaling::By::factor ? half_way / number : half_way * number;
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    values[2 * i] = static_cast<uint16_t>(bits >> 16);
    values[2 * i + 1] = static_cast<uint16_t>((bits >> 16) + 1);
  }
  alignas(64) uint8_t codes[L::kBytes];
  const auto* from = reinterpret_cast<const uint8_t*>(values);
  L::store(codes, encode_vector<L, DType::bf16, kBy>(from, L::set_float(number)));
  for (uint32_t i = 0; i < kSmallCodes; i++) {
    const int below = (codes[2 * i] <= i) + (codes[2 * i + 1] <= i);
    table.greatest_below[i] = static_cast<uint16_t>(values[2 * i] - 1 + below);
  }
}

/// The same as vectors, which stay in registers.
template <class L>
struct Bf16Vectors {
  explicit Bf16Vectors(const Bf16Codes& codes)
      : lowest(L::set8(static_cast<uint8_t>(codes.exponent - 8))),
        first(L::repeat16(codes.first)),
        count_less_1(L::repeat16(codes.count_less_1)) {
    for (uint32_t i = 0; i < kSmallCodes; i++) greatest_below[i] = L::set16(codes.greatest_below[i]);
  }

  typename L::Ints lowest;  // 8 below the exponent
  typename L::Ints first;
  typename L::Ints count_less_1;
  typename L::Ints greatest_below[kSmallCodes];
};

/// A vector's elements as bytes, mixed up as L::in_order expects.
template <class L>
struct Bf16Bytes {
  typename L::Ints low;   // the exponent's last bit, the mantissa
  typename L::Ints high;  // the sign, the rest of the exponent
};

template <class L>
Bf16Bytes<L> load_bf16_bytes(const uint8_t* from) {
  const auto a = L::load(from);
  const auto b = L::load(from + L::kBytes);
  const auto mask = L::set32(0x00FF00FFu);
  return {L::narrow16(L::bit_and(a, mask), L::bit_and(b, mask)),
          L::narrow16(L::template right16<8>(a), L::template right16<8>(b))};
}

/// The magnitudes' codes: right from 9 on, but past the greatest for what saturates; below 9 for all else.
template <class L>
typename L::Ints codes_by_bytes(const Bf16Bytes<L>& bytes, const Bf16Vectors<L>& table) {
  const auto group = L::bit_and(L::template right16<3>(bytes.low), L::set8(0x0F));
  const auto in_group = L::bit_and(bytes.low, L::set8(0x07));
  const auto count_less_1 = L::look_up(table.count_less_1, group);
  const auto code = L::add8_if_greater(L::look_up(table.first, group), in_group, count_less_1);
  const auto last_bit = L::bit_and(L::template right16<7>(bytes.low), L::set8(0x01));
  const auto exponent = L::bit_or(L::add8(bytes.high, bytes.high), last_bit);
  // Counted from 8 below the table's, up to 31, so that eight times as many fit into a byte. The sums saturate.
  const auto steps = L::min8(L::sub8_saturated(exponent, table.lowest), L::set8(31));
  return L::sub8_saturated(L::add8_saturated(code, L::template left16<3>(steps)), L::set8(8 * 8));
}

/// The codes 0 to 8 of magnitudes that have no greater one, in 16 bits.
template <class L>
typename L::Ints small_codes(typename L::Ints signed_bits, const Bf16Vectors<L>& table) {
  const auto magnitude = L::bit_and(signed_bits, L::set16(0x7FFF));
  auto code = L::set16(0);
  for (const auto below : table.greatest_below) code = L::add16_if_greater(code, magnitude, below);
  return code;
}

template <class L>
[[gnu::always_inline]] inline void encode_bf16_vector(const uint8_t* from, const Bf16Vectors<L>& table, uint8_t* to) {
  const auto least_normal = L::set8(kSmallCodes + 1);
  const Bf16Bytes<L> bytes = load_bf16_bytes<L>(from);
  auto code = L::min8(codes_by_bytes<L>(bytes, table), L::set8(kGreatestCode));
  if (L::any8_less(code, least_normal)) {
    const auto a = small_codes<L>(L::load(from), table);
    const auto b = small_codes<L>(L::load(from + L::kBytes), table);
    code = L::select8_less(code, least_normal, L::narrow16(a, b), code);
  }
  L::store(to, L::in_order(L::bit_or(code, L::bit_and(bytes.high, L::set8(0x80)))));
}

template <class L, Scaling::By kBy>
void encode_bf16(const Elements& elements, float number, uint8_t* codes, uint64_t codes_stride) {
  const uint32_t exponent = exponent_to_1<kBy>(number);
  if (exponent < 8 || exponent > 254) return encode_long<L, DType::bf16, kBy>(elements, number, codes, codes_stride);
  Bf16Codes found = {exponent, {}, {}, {}};
  tabulate_normal<L, kBy>(number, found);
  tabulate_small<L, kBy>(number, found);
  const Bf16Vectors<L> table(found);
  for (uint64_t row = 0; row < elements.rows; row++) {
    const uint8_t* from = elements.at + row * elements.stride * 2;
    map_lanes<L::kBytes, 2, 1>(from, elements.cols, codes + row * codes_stride,
                               [&](const uint8_t* lanes, uint8_t* out) { encode_bf16_vector<L>(lanes, table, out); });
  }
}

template <class L, Scaling::By kBy>
void encode_by(const Elements& elements, float number, uint8_t* codes, uint64_t codes_stride) {
  if (elements.dtype == DType::bf16) return encode_bf16<L, kBy>(elements, number, codes, codes_stride);
  encode_long<L, DType::f32, kBy>(elements, number, codes, codes_stride);
}

template <class L>
void encode(const Elements& elements, Scaling scaling, uint8_t* codes, uint64_t codes_stride) {
  if (scaling.by == Scaling::By::factor) {
    encode_by<L, Scaling::By::factor>(elements, scaling.number, codes, codes_stride);
  } else {
    encode_by<L, Scaling::By::divisor>(elements, scaling.number, codes, codes_stride);
  }
}

}  // namespace
}  // namespace layercast
