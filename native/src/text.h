// Numbers and bytes as the bridge writes them: hex digits, decimal numbers beyond 2^53.
#pragma once

#include <array>
#include <charconv>
#include <cstdint>
#include <span>
#include <string>

#include "error.h"

namespace layercast {

inline std::string hex_of(std::span<const uint8_t> bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const uint8_t byte : bytes) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

/// 16 digits, the highest first.
inline std::string hex_of_number(uint64_t number) {
  std::array<uint8_t, 8> bytes;
  for (size_t i = 0; i < bytes.size(); i++) bytes[i] = static_cast<uint8_t>(number >> (56 - 8 * i));
  return hex_of(bytes);
}

template <class Number>
Number number_from_text(const std::string& text, const std::string& name, int base = 10) {
  Number number{};
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, number, base);
  if (parsed.ec != std::errc{} || parsed.ptr != end) throw_invalid(name + " is not a number: " + text);
  return number;
}

template <size_t kSize>
std::array<uint8_t, kSize> bytes_from_hex(const std::string& text, const std::string& name) {
  if (text.size() != 2 * kSize) throw_invalid(name + " must have " + std::to_string(2 * kSize) + " hex digits");
  std::array<uint8_t, kSize> bytes;
  for (size_t i = 0; i < kSize; i++) bytes[i] = number_from_text<uint8_t>(text.substr(2 * i, 2), name, 16);
  return bytes;
}

}  // namespace layercast
