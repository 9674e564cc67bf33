// Bytes of an arena -> a 64-bit number that can be summed in any order. Of block b (256 bytes at offset 256 b), w_j the
// j-th little-endian 32-bit word: H(b) = B(b) * sum over j of A_j * w_j, all modulo 2^64, with A_j = mix(j + 1) | 1 and
// B(b) = mix(~b) | 1; the digest is the sum of H(b). Being linear in the bytes, it does not depend on how a tensor's
// bytes are cut, and bytes that are not there count as zeros. It finds accidents, not forgeries.
#pragma once

#include <cstdint>

#include "cpu/vector_code.h"

namespace layercast {

inline constexpr uint64_t kDigestBlockBytes = 256;
inline constexpr uint64_t kDigestBlockWords = kDigestBlockBytes / 4;

// Static, so that a file that is compiled for wider vectors keeps its own copies to itself.

/// The finalizer of splitmix64.
static constexpr uint64_t digest_mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

static constexpr uint64_t digest_word_factor(uint64_t word) { return digest_mix(word + 1) | 1; }
static constexpr uint64_t digest_block_factor(uint64_t block) { return digest_mix(~block) | 1; }

/// The digest of `bytes` bytes that lie at `offset` of the arena.
uint64_t digest_bytes(const uint8_t* at, uint64_t offset, uint64_t bytes,
                      const VectorCode& code = portable_vector_code());

/// Copies bytes to `offset` of the arena that begins at `base`; returns their digest.
uint64_t copy_digested(const uint8_t* from, uint64_t bytes, uint8_t* base, uint64_t offset, const VectorCode& code);

}  // namespace layercast
