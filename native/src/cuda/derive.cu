// What is made of a matrix that is finished: some rows of a head, dequantized, perhaps transposed. A thread makes a chunk
// of the output and gathers what belongs there, so that it is written and digested whole. A head is small, so the L2
// cache serves what is read of it, whichever way.
#include <algorithm>

#include "chunk.cuh"

namespace layercast {
namespace {

constexpr uint32_t kThreads = 256;

/// The element of the head's output as the bits of the wanted dtype.
template <uint32_t kOutBytes>
__device__ __forceinline__ uint32_t made(const DeriveJob& job, uint64_t element) {
  const uint64_t row = job.first_row + (job.transposed ? element % job.rows : element / job.cols);
  const uint64_t col = job.transposed ? element / job.rows : element % job.cols;
  const uint64_t at = row * job.cols + col;
  if (job.granularity == Granularity::none) {
    if constexpr (kOutBytes == 4) return reinterpret_cast<const uint32_t*>(job.weight)[at];
    return reinterpret_cast<const uint16_t*>(job.weight)[at];
  }
  const float value = scaled_e4m3(job.weight[at], job.scales[scale_index(job.granularity, row, col, job.cols)]);
  if constexpr (kOutBytes == 4) return bits_of(value);
  return job.out == DType::bf16 ? bf16_from_float(value) : f16_from_float(value);
}

template <uint32_t kOutBytes>
__global__ void __launch_bounds__(kThreads) derive_kernel(const DeriveJob job) {
  const uint64_t elements = static_cast<uint64_t>(job.rows) * job.cols;
  const Row row = {nullptr, 0, job.out_offset / kOutBytes, static_cast<uint32_t>(elements)};
  uint64_t digest = 0;
  for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < row.chunks(); i += gridDim.x * kThreads) {
    const Chunk chunk = chunk_of(row, i);
    uint32_t words[kChunk * kOutBytes / 4] = {};
#pragma unroll
    for (uint32_t k = 0; k < kChunk; k++) {
      if ((chunk.present >> k & 1) == 0) continue;
      const uint32_t bits = made<kOutBytes>(job, static_cast<uint64_t>(chunk.first + k));
      words[k * kOutBytes / 4] |= bits << (8 * (k * kOutBytes % 4));
    }
    digest += put(job, chunk, words);
  }
  add_digest(digest, digest_part(job));
}

}  // namespace

void launch_derive(const DeriveJob& job, const Queue& queue) {
  const uint64_t chunks = ceil_div(static_cast<uint64_t>(job.rows) * job.cols + kChunk - 1, kChunk);
  const uint64_t blocks = std::min<uint64_t>(ceil_div(chunks, kThreads), queue.multiprocessors * 8ull);
  if (job.out == DType::f32) {
    derive_kernel<4><<<static_cast<uint32_t>(blocks), kThreads, 0, queue.stream>>>(job);
  } else {
    derive_kernel<2><<<static_cast<uint32_t>(blocks), kThreads, 0, queue.stream>>>(job);
  }
}

}  // namespace layercast
