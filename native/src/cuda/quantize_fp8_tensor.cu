// fp8-tensor: one scale for the whole matrix, so two passes over the source: amax first, then codes.
#include "encode.cuh"

namespace layercast {
namespace {

constexpr uint32_t kThreads = 256;

template <DType kSource>
__global__ void __launch_bounds__(kThreads) measure_kernel(const TileJob job) {
  uint32_t amax_bits = 0;
  for (uint32_t y = blockIdx.y; y < job.rows; y += gridDim.y) {
    Row row = row_of<kSource>(job, y, 0, job.cols, 1);
    row.out = 0;  // nothing is written: chunks begin where the row does
    for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < row.chunks(); i += gridDim.x * kThreads) {
      const Chunk chunk = chunk_of(row, i);
      const Values values = values_of<kSource>(load<kSource>(row, chunk), job.round);
      amax_bits = max(amax_bits, look_at(job, row, chunk, values).amax_bits);
    }
  }
  amax_bits = __reduce_max_sync(0xFFFFFFFFu, amax_bits);
  if (threadIdx.x % 32 == 0) atomicMax(&job.state->amax_bits, amax_bits);
}

template <DType kSource>
__global__ void __launch_bounds__(kThreads) put_kernel(const TileJob job) {
  const float scale = tensor_scale(job.state->amax_bits);
  const Multiplied scaled = {1.0f / scale};
  uint64_t digest = 0;
  if (job.writes_scale && blockIdx.x + blockIdx.y + threadIdx.x == 0) digest += put_scale(job, 0, scale);
  for (uint32_t y = blockIdx.y; y < job.rows; y += gridDim.y) {
    const Row row = row_of<kSource>(job, y, 0, job.cols, 1);
    for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < row.chunks(); i += gridDim.x * kThreads) {
      const Chunk chunk = chunk_of(row, i);
      const Values values = values_of<kSource>(load<kSource>(row, chunk), job.round);
      const Seen seen = look_at(job, row, chunk, values);
      digest += put(job, chunk, encode(values, seen.finite, scaled).words);
    }
  }
  add_digest(digest, digest_part(job));
}

void launch_measure(const TileJob& job, const Queue& queue) {
  const dim3 grid = grid_of_chunks(job, queue, kThreads);
  by_source(job, [&]<DType kSource>() { measure_kernel<kSource><<<grid, kThreads, 0, queue.stream>>>(job); });
}

void launch_put(const TileJob& job, const Queue& queue) {
  const dim3 grid = grid_of_chunks(job, queue, kThreads);
  by_source(job, [&]<DType kSource>() { put_kernel<kSource><<<grid, kThreads, 0, queue.stream>>>(job); });
}

}  // namespace

const SchemeKernels kFp8Tensor = {launch_measure, launch_put};

}  // namespace layercast
