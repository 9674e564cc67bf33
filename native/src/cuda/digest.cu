// The digest of a range of a half.
#include "digest.cuh"
#include "kernels.h"

namespace layercast {
namespace {

constexpr uint32_t kThreads = 256;
constexpr uint64_t kPieceBytes = 16;

/// A piece of an arena from `offset` on, what is outside of [begin, end) as zeros.
__device__ __forceinline__ uint64_t digest_of_piece(const uint8_t* base, uint64_t offset, uint64_t begin,
                                                    uint64_t end) {
  uint32_t words[kPieceBytes / 4] = {0, 0, 0, 0};
  const uint8_t* at = base + offset;
  if (offset >= begin && offset + kPieceBytes <= end && reinterpret_cast<uintptr_t>(at) % sizeof(uint4) == 0) {
    const uint4 four = *reinterpret_cast<const uint4*>(at);
    words[0] = four.x;
    words[1] = four.y;
    words[2] = four.z;
    words[3] = four.w;
  } else {
#pragma unroll
    for (uint32_t i = 0; i < kPieceBytes; i++) {
      if (offset + i >= begin && offset + i < end) words[i / 4] |= static_cast<uint32_t>(at[i]) << (8 * (i % 4));
    }
  }
  return digest_of_words(offset, words);
}

__global__ void __launch_bounds__(kThreads)
    digest_kernel(const uint8_t* base, uint64_t begin, uint64_t end, unsigned long long* sum) {
  const uint64_t first = begin / kPieceBytes;
  const uint64_t pieces = (end + kPieceBytes - 1) / kPieceBytes - first;
  const uint64_t step = static_cast<uint64_t>(gridDim.x) * kThreads;
  uint64_t digest = 0;
  for (uint64_t i = blockIdx.x * static_cast<uint64_t>(kThreads) + threadIdx.x; i < pieces; i += step) {
    digest += digest_of_piece(base, (first + i) * kPieceBytes, begin, end);
  }
  add_digest(digest, sum);
}

}  // namespace

void launch_digest(const uint8_t* base, uint64_t offset, uint64_t bytes, unsigned long long* sum, const Queue& queue) {
  const uint64_t blocks = ceil_div(ceil_div(bytes, kPieceBytes) + 1, kThreads);
  const uint64_t enough = queue.multiprocessors * 8ull;
  const auto grid = static_cast<uint32_t>(blocks < enough ? blocks : enough);
  digest_kernel<<<grid, kThreads, 0, queue.stream>>>(base, offset, offset + bytes, sum);
}

}  // namespace layercast
