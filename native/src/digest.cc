#include "digest.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "cpu/vector_code.h"

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

LAYERCAST_VECTOR_CODE uint64_t whole_blocks(const uint8_t* at, uint64_t first_block, uint64_t blocks) {
  uint64_t sum = 0;
  for (uint64_t i = 0; i < blocks; i++) {
    uint64_t words = 0;
    for (uint64_t j = 0; j < kBlockWords; j++) words += kWordFactors[j] * load_word(at + i * kBlockBytes + 4 * j);
    sum += block_factor(first_block + i) * words;
  }
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
  const uint64_t begin = offset % kBlockBytes;
  const uint64_t head = begin == 0 ? 0 : std::min(bytes, kBlockBytes - begin);
  const uint64_t blocks = (bytes - head) / kBlockBytes;
  const uint64_t tail = bytes - head - blocks * kBlockBytes;
  const uint64_t first_block = (offset + head) / kBlockBytes;
  uint64_t sum = whole_blocks(at + head, first_block, blocks);
  if (head > 0) sum += block_factor(offset / kBlockBytes) * part_of_block(at, begin, head);
  if (tail > 0) sum += block_factor(first_block + blocks) * part_of_block(at + bytes - tail, 0, tail);
  return sum;
}

}  // namespace layercast
