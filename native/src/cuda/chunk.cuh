// What the kernels share. A thread works on chunks: 16 elements whose output is one aligned piece of the half, so that
// it is written and digested whole, whatever the shape. Where a row begins or ends inside of a chunk, some elements are
// not there: they count as zeros and are not written. A chunk is loaded 16 bytes at a time where the tile allows it.
#pragma once

#include <cstdint>

#include "../cpu/numbers.h"
#include "digest.cuh"
#include "kernels.h"

namespace layercast {

inline constexpr uint32_t kChunk = 16;
inline constexpr uint32_t kAllPresent = (1u << kChunk) - 1;

/// A row of a tile, or a part of one.
struct Row {
  const uint8_t* at;
  uint64_t element;  // the first, in the op's matrix
  uint64_t out;      // where that goes, in output elements from the half's base
  uint32_t cols;

  __device__ __forceinline__ uint32_t lead() const { return static_cast<uint32_t>(out % kChunk); }
  __device__ __forceinline__ uint32_t chunks() const {
    return static_cast<uint32_t>((static_cast<uint64_t>(lead()) + cols + kChunk - 1) / kChunk);
  }
};

struct Chunk {
  int64_t first;     // its first element, counted in the row: negative where the row begins inside of the chunk
  uint32_t present;  // a bit an element
  uint64_t out;      // as in Row
};

template <DType kSource>
__device__ __forceinline__ Row row_of(const TileJob& job, uint32_t row, uint32_t first_col, uint32_t cols,
                                      uint32_t out_bytes) {
  const uint64_t in_tile = static_cast<uint64_t>(row) * job.cols + first_col;
  const uint64_t element = job.first_element + row * job.op_cols + first_col;
  return {job.tile + in_tile * dtype_bytes(kSource), element, job.out_offset / out_bytes + element, cols};
}

__device__ __forceinline__ Chunk chunk_of(const Row& row, uint32_t index) {
  const int64_t first = static_cast<int64_t>(index) * kChunk - row.lead();
  const int64_t left = static_cast<int64_t>(row.cols) - first;
  const uint32_t end = left <= 0 ? 0 : static_cast<uint32_t>(left < kChunk ? left : kChunk);
  const uint32_t begin = first < 0 ? static_cast<uint32_t>(-first) : 0;
  const uint32_t present = ((1u << end) - 1) & ~((1u << begin) - 1);
  return {first, present, row.out - row.lead() + static_cast<uint64_t>(index) * kChunk};
}

/// A chunk's elements as they lie in the tile.
template <DType kSource>
struct Raw {
  static constexpr uint32_t kWords = kChunk * dtype_bytes(kSource) / 4;
  uint32_t words[kWords];
};

template <DType kSource>
__device__ __forceinline__ Raw<kSource> load(const Row& row, const Chunk& chunk) {
  constexpr uint32_t kBytes = dtype_bytes(kSource);
  Raw<kSource> raw;
  const uint8_t* at = row.at + chunk.first * static_cast<int64_t>(kBytes);
  if (chunk.present == kAllPresent && reinterpret_cast<uintptr_t>(at) % sizeof(uint4) == 0) {
#pragma unroll
    for (uint32_t i = 0; i < raw.kWords / 4; i++) {
      const uint4 four = reinterpret_cast<const uint4*>(at)[i];
      raw.words[4 * i] = four.x;
      raw.words[4 * i + 1] = four.y;
      raw.words[4 * i + 2] = four.z;
      raw.words[4 * i + 3] = four.w;
    }
    return raw;
  }
#pragma unroll
  for (uint32_t i = 0; i < raw.kWords; i++) raw.words[i] = 0;
#pragma unroll
  for (uint32_t i = 0; i < kChunk; i++) {
    if ((chunk.present >> i & 1) == 0) continue;
    if constexpr (kBytes == 4) {
      raw.words[i] = reinterpret_cast<const uint32_t*>(at)[i];
    } else if constexpr (kBytes == 1) {
      raw.words[i / 4] |= static_cast<uint32_t>(at[i]) << (8 * (i % 4));
    } else {
      raw.words[i / 2] |= static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(at)[i]) << (16 * (i % 2));
    }
  }
  return raw;
}

/// Makes the compiler convert a chunk again where it is used again: registers that hold it as it lies in the tile are
/// fewer than those that would hold its values.
template <DType kSource>
__device__ __forceinline__ Raw<kSource> again(const Raw<kSource>& raw) {
  Raw<kSource> same = raw;
#pragma unroll
  for (uint32_t i = 0; i < same.kWords; i++) asm volatile("" : "+r"(same.words[i]));
  return same;
}

template <DType kSource>
__device__ __forceinline__ float element_of(const Raw<kSource>& raw, uint32_t i) {
  if constexpr (kSource == DType::f32) {
    return float_of(raw.words[i]);
  } else if constexpr (kSource == DType::f8_e4m3) {
    return float_from_e4m3(static_cast<uint8_t>(raw.words[i / 4] >> (8 * (i % 4))));
  } else {
    const auto half = static_cast<uint16_t>(raw.words[i / 2] >> (16 * (i % 2)));
    return kSource == DType::bf16 ? float_from_bf16(half) : float_from_f16(half);
  }
}

/// A chunk's elements as F32, rounded.
struct Values {
  float of[kChunk];
};

template <DType kSource>
__device__ __forceinline__ Values values_of(const Raw<kSource>& raw, DType round) {
  Values values;
#pragma unroll
  for (uint32_t i = 0; i < kChunk; i++) values.of[i] = element_of<kSource>(raw, i);
  if (kSource != DType::bf16 && round == DType::bf16) {
#pragma unroll
    for (uint32_t i = 0; i < kChunk; i++) values.of[i] = float_from_bf16(bf16_from_float(values.of[i]));
  }
  if (kSource != DType::f16 && round == DType::f16) {
#pragma unroll
    for (uint32_t i = 0; i < kChunk; i++) values.of[i] = float_from_f16(f16_from_float(values.of[i]));
  }
  return values;
}

/// The greatest bits without sign: of an absolute value, if all are finite.
__device__ __forceinline__ uint32_t greatest_of(const Values& values) {
  uint32_t greatest = 0;
#pragma unroll
  for (uint32_t i = 0; i < kChunk; i++) greatest = max(greatest, abs_bits(values.of[i]));
  return greatest;
}

__device__ __forceinline__ void lower(unsigned long long* lowest, uint64_t first, uint32_t bad) {
  if (bad != 0) atomicMin(lowest, static_cast<unsigned long long>(first + __ffs(bad) - 1));
}

struct Seen {
  uint32_t amax_bits;  // NaNs left out, infinity as the largest finite value
  bool finite;
};

/// Looks at a chunk's values and notes those that are bad.
__device__ __forceinline__ Seen look_at(const TileJob& job, const Row& row, const Chunk& chunk, const Values& values) {
  const uint32_t greatest = greatest_of(values);
  const bool finite = greatest < kInfinityBits;
  if (finite && !job.must_be_positive) return {greatest, true};
  uint32_t non_finite = 0, not_positive = 0, amax_bits = 0;
#pragma unroll
  for (uint32_t i = 0; i < kChunk; i++) {
    const float value = values.of[i];
    if (abs_bits(value) >= kInfinityBits) {
      non_finite |= 1u << i;
    } else if (value <= 0) {
      not_positive |= 1u << i;
    }
    if (abs_bits(value) <= kInfinityBits) amax_bits = max(amax_bits, abs_bits(without_infinity(value)));
  }
  const uint64_t first = row.element + static_cast<uint64_t>(chunk.first);
  lower(&job.state->non_finite, first, non_finite & chunk.present);
  if (job.must_be_positive) lower(&job.state->not_positive, first, not_positive & chunk.present);
  return {amax_bits, finite};
}

/// Writes what of a chunk is there; words of what is not are zero. Returns the digest of it.
template <uint32_t kWords, class Job>
__device__ __forceinline__ uint64_t put(const Job& job, const Chunk& chunk, const uint32_t (&words)[kWords]) {
  constexpr uint32_t kBytes = kWords * 4 / kChunk;
  const uint64_t offset = chunk.out * kBytes;
  uint8_t* at = job.base + offset;
  if (chunk.present == kAllPresent) {
#pragma unroll
    for (uint32_t i = 0; i < kWords / 4; i++) {
      reinterpret_cast<uint4*>(at)[i] =
          make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
    }
  } else {
#pragma unroll
    for (uint32_t i = 0; i < kChunk; i++) {
      if ((chunk.present >> i & 1) == 0) continue;
      const uint32_t element = words[i * kBytes / 4] >> (8 * (i * kBytes % 4));
      if constexpr (kBytes == 1) at[i] = static_cast<uint8_t>(element);
      if constexpr (kBytes == 2) reinterpret_cast<uint16_t*>(at)[i] = static_cast<uint16_t>(element);
      if constexpr (kBytes == 4) reinterpret_cast<uint32_t*>(at)[i] = element;
    }
  }
  return digest_of_words(offset, words);
}

/// Writes the tile's scale `index`; returns its digest.
__device__ __forceinline__ uint64_t put_scale(const TileJob& job, uint64_t index, float scale) {
  const uint64_t offset = job.scale_offset + index * sizeof(float);
  *reinterpret_cast<float*>(job.base + offset) = scale;
  const uint32_t words[1] = {bits_of(scale)};
  return digest_of_words(offset, words);
}

/// Of the digest's parts, the one that this block adds to.
template <class Job>
__device__ __forceinline__ unsigned long long* digest_part(const Job& job) {
  return job.digest_parts + (blockIdx.x + blockIdx.y) % kDigestParts;
}

/// What all threads of a block have seen together. A block may do this once.
__device__ __forceinline__ Seen seen_by_block(const Seen& mine) {
  __shared__ uint32_t of_warp[32];
  const uint32_t amax_bits = __reduce_max_sync(0xFFFFFFFFu, mine.amax_bits);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = amax_bits;
  const bool finite = __syncthreads_or(!mine.finite) == 0;
  uint32_t greatest = 0;
  for (uint32_t warp = 0; warp < blockDim.x / 32; warp++) greatest = max(greatest, of_warp[warp]);
  return {greatest, finite};
}

/// Calls launch<kSource>() for the dtype of the job's tile.
template <class Launch>
void by_source(const TileJob& job, const Launch& launch) {
  if (job.source == DType::bf16) return launch.template operator()<DType::bf16>();
  if (job.source == DType::f16) return launch.template operator()<DType::f16>();
  launch.template operator()<DType::f32>();
}

/// Whether every row of the job begins where a chunk does.
inline bool rows_begin_with_chunks(const TileJob& job) {
  return job.cols % kChunk == 0 && job.op_cols % kChunk == 0 && (job.out_offset + job.first_element) % kChunk == 0;
}

/// A grid over the chunks of each row: enough blocks to fill the device, which then go on in steps of the grid.
inline dim3 grid_of_chunks(const TileJob& job, const Queue& queue, uint32_t threads) {
  const uint64_t chunks = ceil_div(static_cast<uint64_t>(job.cols) + kChunk - 1, kChunk);
  const uint64_t blocks = ceil_div(chunks, threads);
  const uint64_t enough = queue.multiprocessors * 8ull;
  return dim3(static_cast<uint32_t>(blocks < enough ? blocks : enough), job.rows < 65535 ? job.rows : 65535);
}

}  // namespace layercast
