#include "digest.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace layercast {
namespace {

constexpr uint64_t kBlockBytes = 256;
constexpr uint64_t kBlockWords = kBlockBytes / 4;

constexpr std::array<uint64_t, kBlockWords> word_factors() {
  std::array<uint64_t, kBlockWords> factors{};
  for (uint64_t j = 0; j < kBlockWords; j++) factors[j] = digest_mix(j + 1) | 1;
  return factors;
}

constexpr auto kWordFactors = word_factors();

uint64_t block_factor(uint64_t block) { return digest_mix(~block) | 1; }

uint32_t load_word(const uint8_t* at) {
  uint32_t word;
  std::memcpy(&word, at, sizeof word);
  return word;
}

uint64_t whole_block(const uint8_t* at) {
  uint64_t sum = 0;
  for (uint64_t j = 0; j < kBlockWords; j++) sum += kWordFactors[j] * load_word(at + 4 * j);
  return sum;
}

/// `bytes` bytes that begin `begin` bytes into a block.
uint64_t part_of_block(const uint8_t* at, uint64_t begin, uint64_t bytes) {
  uint64_t sum = 0;
  uint64_t i = 0;
  while (i < bytes) {
    const uint64_t position = begin + i;
    if (position % 4 == 0 && bytes - i >= 4) {
      sum += kWordFactors[position / 4] * load_word(at + i);
      i += 4;
    } else {
      sum += kWordFactors[position / 4] * (static_cast<uint64_t>(at[i]) << (8 * (position % 4)));
      i += 1;
    }
  }
  return sum;
}

}  // namespace

uint64_t digest_bytes(const uint8_t* at, uint64_t offset, uint64_t bytes) {
  uint64_t sum = 0;
  while (bytes > 0) {
    const uint64_t begin = offset % kBlockBytes;
    const uint64_t count = std::min(bytes, kBlockBytes - begin);
    const uint64_t words = count == kBlockBytes ? whole_block(at) : part_of_block(at, begin, count);
    sum += block_factor(offset / kBlockBytes) * words;
    at += count;
    offset += count;
    bytes -= count;
  }
  return sum;
}

}  // namespace layercast
