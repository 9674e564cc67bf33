// The oracle: one element at a time, which the compiler turns into whatever vectors every machine of the kind has.
#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>

#include "../digest.h"
#include "numbers.h"
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
  if constexpr (kSource == DType::f8_e4m3) return float_from_e4m3(from[index]);
}

template <DType kRound>
float round_value(float value) {
  if constexpr (kRound == DType::bf16) return float_from_bf16(bf16_from_float(value));
  if constexpr (kRound == DType::f16) return float_from_f16(f16_from_float(value));
  return value;
}

// Maxima are of signed integers: bits without sign fit, and every vector unit compares those.

template <class T>
uint32_t greatest_of(const Elements& elements) {
  using Signed = std::make_signed_t<T>;
  constexpr T kAbs = static_cast<T>(~T{0}) >> 1;
  Signed greatest = 0;
  for (uint64_t row = 0; row < elements.rows; row++) {
    const uint8_t* at = elements.at + row * elements.stride * sizeof(T);
    for (uint64_t i = 0; i < elements.cols; i++) {
      greatest = std::max(greatest, static_cast<Signed>(load<T>(at, i) & kAbs));
    }
  }
  return static_cast<uint32_t>(greatest);
}

uint32_t greatest(const Elements& elements) {
  if (elements.dtype == DType::f8_e4m3) return greatest_of<uint8_t>(elements);
  return elements.dtype == DType::f32 ? greatest_of<uint32_t>(elements) : greatest_of<uint16_t>(elements);
}

template <DType kSource, DType kRound>
uint32_t convert_as(const uint8_t* from, uint64_t count, float* to) {
  int32_t greatest = 0;
  for (uint64_t i = 0; i < count; i++) {
    const float value = round_value<kRound>(load_value<kSource>(from, i));
    to[i] = value;
    greatest = std::max(greatest, static_cast<int32_t>(abs_bits(value)));
  }
  return static_cast<uint32_t>(greatest);
}

template <DType kSource>
uint32_t convert_from(DType round, const uint8_t* from, uint64_t count, float* to) {
  if (round == DType::bf16 && kSource != DType::bf16) return convert_as<kSource, DType::bf16>(from, count, to);
  if (round == DType::f16 && kSource != DType::f16) return convert_as<kSource, DType::f16>(from, count, to);
  return convert_as<kSource, DType::none>(from, count, to);
}

uint32_t convert(DType source, DType round, const uint8_t* from, uint64_t count, float* to) {
  if (source == DType::bf16) return convert_from<DType::bf16>(round, from, count, to);
  if (source == DType::f16) return convert_from<DType::f16>(round, from, count, to);
  if (source == DType::f8_e4m3) return convert_as<DType::f8_e4m3, DType::none>(from, count, to);
  return convert_from<DType::f32>(round, from, count, to);
}

void decode(const uint8_t* codes, uint64_t count, float scale, float* to) {
  for (uint64_t i = 0; i < count; i++) to[i] = scaled_e4m3(codes[i], scale);
}

template <class Convert>
void narrow_by(const float* values, uint64_t count, uint8_t* to, const Convert& convert) {
  for (uint64_t i = 0; i < count; i++) {
    const auto value = convert(values[i]);
    std::memcpy(to + i * sizeof value, &value, sizeof value);
  }
}

void narrow(DType dtype, const float* values, uint64_t count, uint8_t* to) {
  if (dtype == DType::bf16) return narrow_by(values, count, to, bf16_from_float);
  if (dtype == DType::f16) return narrow_by(values, count, to, f16_from_float);
  narrow_by(values, count, to, quiet);
}

template <DType kSource, Scaling::By kBy>
void encode_as(const Elements& elements, float number, uint8_t* codes, uint64_t codes_stride) {
  for (uint64_t row = 0; row < elements.rows; row++) {
    const uint8_t* from = elements.at + row * elements.stride * dtype_bytes(kSource);
    uint8_t* to = codes + row * codes_stride;
    for (uint64_t i = 0; i < elements.cols; i++) {
      const float value = load_value<kSource>(from, i);
      const float scaled = kBy == Scaling::By::factor ? value * number : value / number;
      to[i] = e4m3_from_scaled(scaled, bits_of(value));
    }
  }
}

template <DType kSource>
void encode_from(const Elements& elements, Scaling scaling, uint8_t* codes, uint64_t codes_stride) {
  if (scaling.by == Scaling::By::factor) {
    encode_as<kSource, Scaling::By::factor>(elements, scaling.number, codes, codes_stride);
  } else {
    encode_as<kSource, Scaling::By::divisor>(elements, scaling.number, codes, codes_stride);
  }
}

void encode(const Elements& elements, Scaling scaling, uint8_t* codes, uint64_t codes_stride) {
  if (elements.dtype == DType::bf16) return encode_from<DType::bf16>(elements, scaling, codes, codes_stride);
  encode_from<DType::f32>(elements, scaling, codes, codes_stride);
}

constexpr std::array<uint64_t, kDigestBlockWords> word_factors() {
  std::array<uint64_t, kDigestBlockWords> factors{};
  for (uint64_t j = 0; j < kDigestBlockWords; j++) factors[j] = digest_word_factor(j);
  return factors;
}

constexpr auto kWordFactors = word_factors();

uint64_t digest_blocks(const uint8_t* at, uint64_t first_block, uint64_t blocks) {
  uint64_t sum = 0;
  for (uint64_t i = 0; i < blocks; i++) {
    const uint8_t* block = at + i * kDigestBlockBytes;
    uint64_t words = 0;
    for (uint64_t j = 0; j < kDigestBlockWords; j++) words += kWordFactors[j] * load<uint32_t>(block, j);
    sum += digest_block_factor(first_block + i) * words;
  }
  return sum;
}

uint64_t copy_blocks(const uint8_t* from, uint64_t first_block, uint64_t blocks, uint8_t* to) {
  std::memcpy(to, from, blocks * kDigestBlockBytes);
  return digest_blocks(from, first_block, blocks);
}

constexpr VectorCode kPortable = {"portable", greatest, convert, decode, narrow, encode, digest_blocks, copy_blocks};

}  // namespace

const VectorCode& portable_vector_code() { return kPortable; }

}  // namespace layercast
