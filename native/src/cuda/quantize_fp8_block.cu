// fp8-block: a scale for each 128 by 128 elements. A block of threads takes one scale block and keeps it in its
// registers: four passes of 32 rows, with as many threads a row as a row may have chunks, which is 8, or 9 where rows
// begin anywhere.
#include "encode.cuh"

namespace layercast {
namespace {

constexpr uint32_t kRowsAtOnce = 32;
constexpr uint32_t kPasses = kScaleBlock / kRowsAtOnce;
constexpr uint32_t kChunksAligned = kScaleBlock / kChunk;
constexpr uint32_t kMostThreads = kRowsAtOnce * (kChunksAligned + 1);

template <DType kSource>
__global__ void __launch_bounds__(kMostThreads) put_kernel(const TileJob job) {
  const uint32_t chunks_a_row = blockDim.x / kRowsAtOnce;
  const uint32_t index = threadIdx.x % chunks_a_row;
  const uint32_t first_row = blockIdx.y * kScaleBlock + threadIdx.x / chunks_a_row;
  const uint32_t first_col = blockIdx.x * kScaleBlock;
  const auto cols = static_cast<uint32_t>(min(static_cast<uint64_t>(job.cols - first_col), kScaleBlock));
  const auto row_in = [&](uint32_t pass) {
    const uint32_t y = first_row + pass * kRowsAtOnce;
    return row_of<kSource>(job, y, first_col, y < job.rows ? cols : 0, 1);
  };

  Raw<kSource> kept[kPasses];
#pragma unroll
  for (uint32_t pass = 0; pass < kPasses; pass++) {
    const Row row = row_in(pass);
    kept[pass] = load<kSource>(row, chunk_of(row, index));
  }
  Seen mine = {0, true};
#pragma unroll
  for (uint32_t pass = 0; pass < kPasses; pass++) {
    const Row row = row_in(pass);
    const Seen seen = look_at(job, row, chunk_of(row, index), values_of<kSource>(kept[pass], job.round));
    mine = {max(mine.amax_bits, seen.amax_bits), mine.finite && seen.finite};
  }
  const Seen seen = seen_by_block(mine);

  const float scale = block_scale(seen.amax_bits);
  const Multiplied scaled = {1.0f / scale};
  uint64_t digest = threadIdx.x == 0 ? put_scale(job, blockIdx.y * job.band_scales + blockIdx.x, scale) : 0;
#pragma unroll
  for (uint32_t pass = 0; pass < kPasses; pass++) {
    const Values values = values_of<kSource>(again(kept[pass]), job.round);
    digest += put(job, chunk_of(row_in(pass), index), encode(values, seen.finite, scaled).words);
  }
  add_digest(digest, digest_part(job));
}

void launch_put(const TileJob& job, const Queue& queue) {
  const uint32_t threads = kRowsAtOnce * (kChunksAligned + (rows_begin_with_chunks(job) ? 0 : 1));
  const dim3 grid(static_cast<uint32_t>(ceil_div(job.cols, kScaleBlock)),
                  static_cast<uint32_t>(ceil_div(job.rows, kScaleBlock)));
  by_source(job, [&]<DType kSource>() { put_kernel<kSource><<<grid, threads, 0, queue.stream>>>(job); });
}

}  // namespace

const SchemeKernels kFp8Block = {nullptr, launch_put};

}  // namespace layercast
