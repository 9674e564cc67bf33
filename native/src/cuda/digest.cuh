// The digest of words that lie in one aligned piece of an arena: ../digest.h, on the device.
#pragma once

#include <array>
#include <cstdint>

#include "../digest.h"

namespace layercast {

constexpr std::array<uint64_t, kDigestBlockWords> digest_word_factors() {
  std::array<uint64_t, kDigestBlockWords> factors{};
  for (uint64_t word = 0; word < kDigestBlockWords; word++) factors[word] = digest_word_factor(word);
  return factors;
}

/// In plain device memory: in constant memory the threads of a warp, which want different ones, would wait in line.
alignas(16) static __device__ const std::array<uint64_t, kDigestBlockWords> kDigestFactors = digest_word_factors();

/// `offset` is a multiple of the words' bytes, which divide a block.
template <uint32_t kWords>
__device__ __forceinline__ uint64_t digest_of_words(uint64_t offset, const uint32_t (&words)[kWords]) {
  const uint64_t* factors = kDigestFactors.data() + offset % kDigestBlockBytes / 4;
  uint64_t sum = 0;
#pragma unroll
  for (uint32_t i = 0; i < kWords; i++) sum += factors[i] * words[i];
  return digest_block_factor(offset / kDigestBlockBytes) * sum;
}

/// Adds up what the threads of each warp have, and that to `*total`. All threads of a block take part.
__device__ __forceinline__ void add_digest(uint64_t sum, unsigned long long* total) {
#pragma unroll
  for (uint32_t distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, distance);
  if (threadIdx.x % 32 == 0) atomicAdd(total, static_cast<unsigned long long>(sum));
}

}  // namespace layercast
