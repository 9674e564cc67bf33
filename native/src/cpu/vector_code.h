// The loops over elements and bytes, where the time of a tile goes, as a table of functions. There is one in plain
// loops, the oracle, and for x86-64 one for AVX2 and one for AVX-512. All give the same bits, NaNs too: no
// multiplication is fused with an addition, nothing is approximated, subnormals stay. Pointers need no alignment.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "../dtype.h"

namespace layercast {

/// Rows of a matrix of BF16, F16, F32 or E4M3 codes in memory, `stride` elements apart.
struct Elements {
  const uint8_t* at;
  DType dtype;
  uint64_t rows;
  uint64_t cols;
  uint64_t stride;
};

/// Of a value before it is rounded to E4M3: times, or divided by, a number.
struct Scaling {
  enum class By : int32_t { factor, divisor } by;
  float number;
};

struct VectorCode {
  const char* name;

  /// The greatest bits without sign. So long as those are less than infinity's (of codes: than NaN's), it is the greatest
  /// absolute value.
  uint32_t (*greatest)(const Elements& elements);

  /// To F32, rounded to `round` first unless that is none; returns the greatest bits without sign of what it wrote.
  uint32_t (*convert)(DType source, DType round, const uint8_t* from, uint64_t count, float* to);

  /// E4M3 codes times a scale, as scaled_e4m3 of numbers.h.
  void (*decode)(const uint8_t* codes, uint64_t count, float scale, float* to);

  /// F32 -> BF16, F16, or F32 with quiet NaNs.
  void (*narrow)(DType dtype, const float* values, uint64_t count, uint8_t* to);

  /// To E4M3, into rows `codes_stride` apart. BF16 that is all finite, or F32.
  void (*encode)(const Elements& elements, Scaling scaling, uint8_t* codes, uint64_t codes_stride);

  /// The digest (../digest.h) of whole blocks of 256 bytes, the first being block `first_block` of an arena.
  uint64_t (*digest_blocks)(const uint8_t* at, uint64_t first_block, uint64_t blocks);

  /// The same of bytes that it copies. Once it has returned, whoever is told so sees them.
  uint64_t (*copy_blocks)(const uint8_t* from, uint64_t first_block, uint64_t blocks, uint8_t* to);
};

const VectorCode& portable_vector_code();

/// All that this machine can run, the portable one first, the widest last.
std::span<const VectorCode* const> available_vector_codes();

/// Throws invalid_argument for one that is not available.
const VectorCode& vector_code_named(std::string_view name);

/// The one that LAYERCAST_VECTORS names, else the widest.
const VectorCode& chosen_vector_code();

}  // namespace layercast
