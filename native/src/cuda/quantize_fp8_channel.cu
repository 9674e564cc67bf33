// fp8-channel: a scale a row. A block of threads takes one row, keeps as much of it as fits into its registers, and
// reads the rest a second time, out of the L2 cache.
#include "encode.cuh"

namespace layercast {
namespace {

constexpr uint32_t kMostThreads = 256;
constexpr uint32_t kKept = 4;  // enough loads in flight, and registers for three blocks of the most threads at one time

template <DType kSource>
__global__ void __launch_bounds__(kMostThreads) put_kernel(const TileJob job) {
  const Row row = row_of<kSource>(job, blockIdx.x, 0, job.cols, 1);
  const uint32_t chunks = row.chunks();
  Raw<kSource> kept[kKept];
#pragma unroll
  for (uint32_t k = 0; k < kKept; k++) kept[k] = load<kSource>(row, chunk_of(row, threadIdx.x + k * blockDim.x));

  Seen mine = {0, true};
  const auto look = [&](uint32_t index, const Raw<kSource>& raw) {
    const Seen seen = look_at(job, row, chunk_of(row, index), values_of<kSource>(raw, job.round));
    mine = {max(mine.amax_bits, seen.amax_bits), mine.finite && seen.finite};
  };
#pragma unroll
  for (uint32_t k = 0; k < kKept; k++) look(threadIdx.x + k * blockDim.x, kept[k]);
  for (uint32_t i = threadIdx.x + kKept * blockDim.x; i < chunks; i += blockDim.x) {
    look(i, load<kSource>(row, chunk_of(row, i)));
  }
  const Seen seen = seen_by_block(mine);

  const float scale = channel_scale(seen.amax_bits);
  const Divided scaled(scale);
  uint64_t digest = threadIdx.x == 0 ? put_scale(job, blockIdx.x, scale) : 0;
  const auto write = [&](uint32_t index, const Raw<kSource>& raw) {
    const Values values = values_of<kSource>(again(raw), job.round);
    digest += put(job, chunk_of(row, index), encode(values, seen.finite, scaled).words);
  };
#pragma unroll
  for (uint32_t k = 0; k < kKept; k++) {
    if (threadIdx.x + k * blockDim.x < chunks) write(threadIdx.x + k * blockDim.x, kept[k]);
  }
  for (uint32_t i = threadIdx.x + kKept * blockDim.x; i < chunks; i += blockDim.x) {
    write(i, load<kSource>(row, chunk_of(row, i)));
  }
  add_digest(digest, digest_part(job));
}

void launch_put(const TileJob& job, const Queue& queue) {
  const uint64_t lead = rows_begin_with_chunks(job) ? 0 : kChunk - 1;
  const uint64_t chunks = ceil_div(job.cols + lead, kChunk);
  const uint64_t wanted = ceil_div(chunks, kKept * 32) * 32;
  const auto threads = static_cast<uint32_t>(wanted < kMostThreads ? wanted : kMostThreads);
  by_source(job, [&]<DType kSource>() { put_kernel<kSource><<<job.rows, threads, 0, queue.stream>>>(job); });
}

}  // namespace

const SchemeKernels kFp8Channel = {nullptr, launch_put};

}  // namespace layercast
