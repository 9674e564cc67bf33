// What the host side asks of the kernels: one launch function an operation. A launch only queues; check_launch says
// whether it was taken.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>

#include "../layer_program.h"

namespace layercast {

/// What the tiles of an op find together, in device memory: atomics of the kernels.
struct OpState {
  unsigned long long non_finite;    // the first such element, as in BadElements
  unsigned long long not_positive;
  uint32_t amax_bits;
};

/// A run's digest is kept in parts, so that not all blocks add to one number at the same time.
inline constexpr uint32_t kDigestParts = 64;

/// A tile in device memory, and where its numbers go. Offsets count from `base`, which is aligned to 256 bytes.
struct TileJob {
  DType source;
  DType round;  // none where it would change nothing
  DType out;
  bool bits_kept;  // values are copied as they are
  bool must_be_positive;

  const uint8_t* tile;  // its rows packed
  uint32_t rows;
  uint32_t cols;  // rows * cols < 2^31
  uint64_t first_element;  // of the op's matrix, row by row
  uint64_t op_cols;

  uint8_t* base;
  uint64_t out_offset;  // of the op
  uint64_t scale_offset;  // of the tile's first scale
  uint64_t band_scales;  // where blocks share a scale: from one band's first to the next band's
  bool writes_scale;  // where the matrix shares one: of its tiles, the first does

  OpState* state;
  unsigned long long* digest_parts;
};

/// One head of what is derived: rows [first_row, first_row + rows) of a matrix of `cols` columns.
struct DeriveJob {
  Granularity granularity;
  DType out;
  bool transposed;
  const uint8_t* weight;
  const float* scales;
  uint64_t first_row;
  uint32_t rows;
  uint32_t cols;  // rows * cols < 2^31
  uint8_t* base;
  uint64_t out_offset;
  unsigned long long* digest_parts;
};

struct Queue {
  cudaStream_t stream;
  uint32_t multiprocessors;
};

/// What a scheme is on a GPU: the kernels of its file in this folder.
struct SchemeKernels {
  /// Only where one scale is for the whole matrix, else null.
  void (*measure)(const TileJob& job, const Queue& queue);
  void (*put)(const TileJob& job, const Queue& queue);
};

extern const SchemeKernels kNone, kFp8Tensor, kFp8Channel, kFp8Block;

/// In the order of their codes.
inline constexpr std::array kSchemeKernels = {
    &kNone,
    &kFp8Tensor,
    &kFp8Channel,
    &kFp8Block,
};
static_assert(kSchemeKernels.size() == kSchemes.size(), "each scheme has its kernels");

void launch_derive(const DeriveJob& job, const Queue& queue);

/// Adds the digest of `bytes` bytes at `offset` of the half to `*sum`.
void launch_digest(const uint8_t* base, uint64_t offset, uint64_t bytes, unsigned long long* sum, const Queue& queue);
void launch_exchange(uint8_t* a, uint8_t* b, uint64_t bytes, const Queue& queue);

}  // namespace layercast
