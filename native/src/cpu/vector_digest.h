// The loops of vector_code.h that digest bytes, and copy them on the way.
#pragma once

#include "../digest.h"
#include "vector_lanes.h"

namespace layercast {
namespace {

/// The words' factors as vectors multiply, 32 by 32 bits in 64: by halves, and those of even and odd words apart.
struct WordFactors {
  alignas(64) uint64_t even_low[kDigestBlockWords / 2];
  alignas(64) uint64_t even_high[kDigestBlockWords / 2];
  alignas(64) uint64_t odd_low[kDigestBlockWords / 2];
  alignas(64) uint64_t odd_high[kDigestBlockWords / 2];
};

constexpr WordFactors word_factors() {
  WordFactors factors = {};
  for (uint64_t i = 0; i < kDigestBlockWords / 2; i++) {
    factors.even_low[i] = digest_word_factor(2 * i) & 0xFFFFFFFFu;
    factors.even_high[i] = digest_word_factor(2 * i) >> 32;
    factors.odd_low[i] = digest_word_factor(2 * i + 1) & 0xFFFFFFFFu;
    factors.odd_high[i] = digest_word_factor(2 * i + 1) >> 32;
  }
  return factors;
}

constexpr WordFactors kWordFactors = word_factors();

/// Streamed past the caches: nobody reads what is written before the reload's end, and a line that is written
/// whole need not be fetched first.
enum class Copy { no, plain, streamed };

template <class L, Copy kCopy>
uint64_t each_block(const uint8_t* from, uint64_t first_block, uint64_t blocks, uint8_t* to) {
  auto sum = L::set32(0);
  for (uint64_t i = 0; i < blocks; i++) {
    const uint8_t* block = from + i * kDigestBlockBytes;
    auto low = L::set32(0);
    auto high = L::set32(0);
    for (uint64_t at = 0; at < kDigestBlockBytes; at += L::kBytes) {
      const auto even = L::load(block + at);
      if constexpr (kCopy == Copy::plain) L::store(to + i * kDigestBlockBytes + at, even);
      if constexpr (kCopy == Copy::streamed) L::stream(to + i * kDigestBlockBytes + at, even);
      const auto odd = L::template right64<32>(even);
      const auto product = [&](auto words, const uint64_t* factors) {
        return L::mul_lower32(words, L::load(factors + at / 8));
      };
      low = L::add64(low, L::add64(product(even, kWordFactors.even_low), product(odd, kWordFactors.odd_low)));
      high = L::add64(high, L::add64(product(even, kWordFactors.even_high), product(odd, kWordFactors.odd_high)));
    }
    // The lanes are added up at the end: a block's factor may as well multiply each.
    const auto words = L::add64(low, L::template left64<32>(high));
    sum = L::add64(sum, L::mul64(words, digest_block_factor(first_block + i)));
  }
  return sum_of_lanes64<L>(sum);
}

template <class L>
uint64_t digest_blocks(const uint8_t* at, uint64_t first_block, uint64_t blocks) {
  return each_block<L, Copy::no>(at, first_block, blocks, nullptr);
}

template <class L>
uint64_t copy_blocks(const uint8_t* from, uint64_t first_block, uint64_t blocks, uint8_t* to) {
  if (reinterpret_cast<uintptr_t>(to) % L::kBytes != 0) {
    return each_block<L, Copy::plain>(from, first_block, blocks, to);
  }
  const uint64_t sum = each_block<L, Copy::streamed>(from, first_block, blocks, to);
  L::fence();
  return sum;
}

}  // namespace
}  // namespace layercast
