// The element conversions against the slow reference: every 16-bit value, and F32 values round every edge.
#include "cpu/numbers.h"

#include <bit>
#include <limits>
#include <random>

#include "check.h"
#include "scheme_reference.h"

using namespace layercast;
using namespace layercast::test;

namespace {

uint8_t e4m3(float value) { return e4m3_from_scaled(value, bits_of(value)); }

bool same(float value, double expected) {
  if (std::isnan(expected)) return std::isnan(value) && std::signbit(value) == std::signbit(expected);
  return value == expected && std::signbit(value) == std::signbit(expected);
}

/// F32 values of every exponent, those beside each halfway point of the three formats, and many at random.
template <class Each>
void each_f32(const Each& each) {
  for (uint32_t upper = 0; upper < 0x10000; upper++) {
    for (const uint32_t lower : {0u, 1u, 0x0FFFu, 0x1000u, 0x1001u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu}) {
      each(std::bit_cast<float>(upper << 16 | lower));
    }
  }
  std::mt19937 random(1);
  for (int i = 0; i < 1'000'000; i++) each(std::bit_cast<float>(static_cast<uint32_t>(random())));
}

}  // namespace

LAW("every BF16 and F16 value becomes exactly its F32") {
  for (uint32_t bits = 0; bits < 0x10000; bits++) {
    const auto half = static_cast<uint16_t>(bits);
    CHECK(same(float_from_bf16(half), bf16_value(half)));
    CHECK(same(float_from_f16(half), f16_value(half)));
  }
}

LAW("every BF16 and F16 value becomes the E4M3 code of the reference") {
  for (uint32_t bits = 0; bits < 0x10000; bits++) {
    const auto half = static_cast<uint16_t>(bits);
    const float from_bf16 = float_from_bf16(half);
    const float from_f16 = float_from_f16(half);
    CHECK_EQUAL(+e4m3(from_bf16), +e4m3_reference(from_bf16));
    CHECK_EQUAL(+e4m3(from_f16), +e4m3_reference(from_f16));
  }
}

LAW("F32 values become the E4M3 codes of the reference") {
  each_f32([](float value) { CHECK_EQUAL(+e4m3(value), +e4m3_reference(value)); });
}

LAW("E4M3 rounds ties to even, keeps subnormals and signs, and saturates") {
  const std::pair<float, int> known[] = {
      {1.0f, 0x38},       {0.5f, 0x30},     {448.0f, 0x7E},     {0x1p-6f, 0x08},   {0x1p-9f, 0x01},   {1.0625f, 0x38},
      {1.1875f, 0x3A},    {0x1p-10f, 0x00}, {0x1.8p-9f, 0x02},  {464.0f, 0x7E},    {1e30f, 0x7E},     {-448.5f, 0xFE},
      {-0.0f, 0x80},      {-1e-30f, 0x80},  {0x1.8p-10f, 0x01}, {0x1.Fp-7f, 0x08}, {0x1p-149f, 0x00},
      {-0x1p-149f, 0x80},
      {0x1.000002p-10f, 0x01},
  };
  for (const auto& [value, code] : known) CHECK_EQUAL(+e4m3(value), code);
  CHECK_EQUAL(+e4m3(std::numeric_limits<float>::infinity()), 0x7E);
  CHECK_EQUAL(+e4m3(std::numeric_limits<float>::quiet_NaN()), 0x7F);
  CHECK_EQUAL(+e4m3(-std::numeric_limits<float>::quiet_NaN()), 0xFF);
}

LAW("the scale of a block is a product with the F32 nearest to 1 / 448, not a quotient, of at least 0.0001") {
  const std::pair<float, float> known[] = {
      {448.0f, 1.0f}, {3.0f, 0x1.b6db7p-8f}, {0.1f, 0x1.d41d44p-13f}, {1.3f, 0x1.7c57c6p-9f},
      {1e-4f, 0x1.df595ap-23f}, {0x1.a36e2cp-14f, 0x1.df595ap-23f}, {0x1p-149f, 0x1.df595ap-23f}, {0.0f, 0x1.df595ap-23f},
  };
  for (const auto& [amax, scale] : known) CHECK_EQUAL(block_scale(bits_of(amax)), scale);
  each_f32([](float value) {
    const float amax = std::abs(value);
    if (std::isfinite(amax)) CHECK_EQUAL(block_scale(bits_of(amax)), scale_reference(Scheme::fp8_block, amax));
  });
}

LAW("F32 values round to BF16 and F16 as the reference does") {
  each_f32([](float value) {
    CHECK_EQUAL(bf16_from_float(value), bf16_reference(value));
    CHECK_EQUAL(f16_from_float(value), f16_reference(value));
  });
}

LAW("a 16-bit value comes back from F32 unchanged, a NaN quiet") {
  for (uint32_t bits = 0; bits < 0x10000; bits++) {
    const auto half = static_cast<uint16_t>(bits);
    const bool bf16_nan = (half & 0x7FFF) > 0x7F80;
    const bool f16_nan = (half & 0x7FFF) > 0x7C00;
    CHECK_EQUAL(bf16_from_float(float_from_bf16(half)), bf16_nan ? ((half & 0x8000) | 0x7FC0) : half);
    CHECK_EQUAL(f16_from_float(float_from_f16(half)), f16_nan ? ((half & 0x8000) | 0x7E00) : half);
  }
}
