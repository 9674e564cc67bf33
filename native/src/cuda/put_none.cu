// Scheme none: values as they are, or rounded to another dtype; FP8 codes as they are.
#include "chunk.cuh"

namespace layercast {
namespace {

constexpr uint32_t kThreads = 256;

/// Values that have been rounded, as `out`: this loses nothing.
template <uint32_t kWords>
__device__ __forceinline__ void store_as(DType out, const Values& values, uint32_t (&words)[kWords]) {
#pragma unroll
  for (uint32_t i = 0; i < kWords; i++) {
    if constexpr (kWords == kChunk) {
      words[i] = bits_of(quiet(values.of[i]));
    } else if (out == DType::bf16) {
      words[i] = bf16_from_float(values.of[2 * i]) | static_cast<uint32_t>(bf16_from_float(values.of[2 * i + 1])) << 16;
    } else {
      words[i] = f16_from_float(values.of[2 * i]) | static_cast<uint32_t>(f16_from_float(values.of[2 * i + 1])) << 16;
    }
  }
}

template <DType kSource, uint32_t kOutBytes>
__global__ void __launch_bounds__(kThreads) put_kernel(const TileJob job) {
  constexpr uint32_t kWords = kChunk * kOutBytes / 4;
  uint64_t digest = 0;
  for (uint32_t y = blockIdx.y; y < job.rows; y += gridDim.y) {
    const Row row = row_of<kSource>(job, y, 0, job.cols, kOutBytes);
    for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < row.chunks(); i += gridDim.x * kThreads) {
      const Chunk chunk = chunk_of(row, i);
      const Raw<kSource> raw = load<kSource>(row, chunk);
      const Values values = values_of<kSource>(raw, job.round);
      look_at(job, row, chunk, values);
      if constexpr (kSource == DType::f8_e4m3) {
        digest += put(job, chunk, raw.words);
        continue;
      }
      if constexpr (raw.kWords == kWords) {
        if (job.bits_kept) {
          digest += put(job, chunk, raw.words);
          continue;
        }
      }
      uint32_t words[kWords];
      store_as(job.out, values, words);
      digest += put(job, chunk, words);
    }
  }
  add_digest(digest, digest_part(job));
}

void launch_put(const TileJob& job, const Queue& queue) {
  const dim3 grid = grid_of_chunks(job, queue, kThreads);
  if (job.source == DType::f8_e4m3) {
    put_kernel<DType::f8_e4m3, 1><<<grid, kThreads, 0, queue.stream>>>(job);
    return;
  }
  by_source(job, [&]<DType kSource>() {
    if (job.out == DType::f32) {
      put_kernel<kSource, 4><<<grid, kThreads, 0, queue.stream>>>(job);
    } else {
      put_kernel<kSource, 2><<<grid, kThreads, 0, queue.stream>>>(job);
    }
  });
}

}  // namespace

const SchemeKernels kNone = {nullptr, launch_put};

}  // namespace layercast
