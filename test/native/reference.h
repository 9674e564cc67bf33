// The numbers once more, slowly: from the definition of each format, by decimal-free rounding in double, sharing
// nothing with the core. Slow and obvious is the point.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

namespace layercast::test {

struct Format {
  int mantissa_bits;
  int least_exponent;  // of normal numbers
  double largest;
};

inline constexpr Format kBf16 = {7, -126, 0x1.FEp127};
inline constexpr Format kF16 = {10, -14, 65504.0};
inline constexpr Format kE4m3 = {3, -6, 448.0};

/// The format's nearest number, ties to the even mantissa; infinity past the largest by half a step or more.
inline double nearest(double value, const Format& format) {
  if (!std::isfinite(value) || value == 0) return value;
  const int exponent = std::max(std::ilogb(value), format.least_exponent);
  const double step = std::ldexp(1.0, exponent - format.mantissa_bits);
  const double rounded = std::nearbyint(value / step) * step;
  return std::abs(rounded) > format.largest ? std::copysign(std::numeric_limits<double>::infinity(), value) : rounded;
}

/// The bits of a number of the format, exponent bias `bias`; the value must be one that the format has.
inline uint32_t encode(double value, const Format& format, int bias, int sign_bit) {
  const uint32_t sign = std::signbit(value) ? 1u << sign_bit : 0;
  const double magnitude = std::abs(value);
  if (magnitude == 0) return sign;
  const int exponent = std::max(std::ilogb(magnitude), format.least_exponent);
  const double steps = std::ldexp(magnitude, format.mantissa_bits - exponent);
  const double whole = std::ldexp(1.0, format.mantissa_bits);
  const auto digits = static_cast<uint32_t>(steps);
  if (steps < whole) return sign | digits;
  return sign | ((static_cast<uint32_t>(exponent + bias) << format.mantissa_bits) + digits -
                 static_cast<uint32_t>(whole));
}

inline uint8_t e4m3_reference(float value) {
  if (std::isnan(value)) return std::signbit(value) ? 0xFF : 0x7F;
  double rounded = nearest(value, kE4m3);
  if (std::abs(rounded) > kE4m3.largest) rounded = std::copysign(kE4m3.largest, value);
  return static_cast<uint8_t>(encode(rounded, kE4m3, 7, 7));
}

inline uint16_t half_reference(float value, const Format& format, int bias, uint16_t infinity) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const auto quiet_bit = static_cast<uint16_t>(1u << (format.mantissa_bits - 1));
  if (std::isnan(value)) return sign | infinity | quiet_bit;
  const double rounded = nearest(value, format);
  if (std::isinf(rounded)) return sign | infinity;
  return static_cast<uint16_t>(encode(rounded, format, bias, 15));
}

inline uint16_t bf16_reference(float value) { return half_reference(value, kBf16, 127, 0x7F80); }
inline uint16_t f16_reference(float value) { return half_reference(value, kF16, 15, 0x7C00); }

inline double f16_value(uint16_t bits) {
  const double sign = bits & 0x8000 ? -1 : 1;
  const int exponent = (bits >> 10) & 31;
  const int digits = bits & 1023;
  if (exponent == 31) {
    return digits ? std::copysign(std::numeric_limits<double>::quiet_NaN(), sign)
                  : sign * std::numeric_limits<double>::infinity();
  }
  return sign * (exponent == 0 ? std::ldexp(digits, -24) : std::ldexp(1024 + digits, exponent - 25));
}

inline double bf16_value(uint16_t bits) {
  const double sign = bits & 0x8000 ? -1 : 1;
  const int exponent = (bits >> 7) & 255;
  const int digits = bits & 127;
  if (exponent == 255) {
    return digits ? std::copysign(std::numeric_limits<double>::quiet_NaN(), sign)
                  : sign * std::numeric_limits<double>::infinity();
  }
  return sign * (exponent == 0 ? std::ldexp(digits, -133) : std::ldexp(128 + digits, exponent - 134));
}

inline double e4m3_value(uint8_t code) {
  const double sign = code & 0x80 ? -1 : 1;
  const int exponent = (code >> 3) & 15, digits = code & 7;
  if ((code & 0x7F) == 0x7F) return std::copysign(std::numeric_limits<double>::quiet_NaN(), sign);
  return sign * (exponent == 0 ? std::ldexp(digits, -9) : std::ldexp(8 + digits, exponent - 10));
}

}  // namespace layercast::test
