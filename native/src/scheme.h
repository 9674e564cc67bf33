// The quantization schemes, a row each: what the core must know of one beside its arithmetic, which is one file of cpu/
// and one of cuda/ (docs/adding-a-recipe.md). The codes are those of SCHEMES in orchestrator/contract/recipe.ts.
#pragma once

#include <array>
#include <cstdint>

namespace layercast {

enum class Scheme : int32_t { none = 0, fp8_tensor = 1, fp8_channel = 2, fp8_block = 3 };

/// Which elements of a matrix share a scale. A tile holds all of those, so it is read once; a whole matrix is not one
/// tile, so its tiles are read twice: measured first, then put.
enum class Granularity : int32_t { none, matrix, row, block };

struct SchemeRow {
  Scheme scheme;
  const char* name;
  Granularity granularity;
};

inline constexpr std::array kSchemes = {
    SchemeRow{Scheme::none, "none", Granularity::none},
    SchemeRow{Scheme::fp8_tensor, "fp8-tensor", Granularity::matrix},
    SchemeRow{Scheme::fp8_channel, "fp8-channel", Granularity::row},
    SchemeRow{Scheme::fp8_block, "fp8-block", Granularity::block},
};

consteval bool schemes_stand_by_code() {
  for (size_t i = 0; i < kSchemes.size(); i++) {
    if (kSchemes[i].scheme != static_cast<Scheme>(i)) return false;
  }
  return true;
}
static_assert(schemes_stand_by_code(), "a scheme's code is its place in kSchemes");

constexpr Granularity granularity_of(Scheme scheme) { return kSchemes[static_cast<size_t>(scheme)].granularity; }

/// Whether the scheme's tiles are read twice.
constexpr bool is_measured(Scheme scheme) { return granularity_of(scheme) == Granularity::matrix; }

/// Rows and columns of a block of elements that share a scale.
inline constexpr uint64_t kScaleBlock = 128;

constexpr uint64_t ceil_div(uint64_t value, uint64_t by) { return value / by + (value % by != 0); }

/// Scales of a matrix.
constexpr uint64_t scale_count(Granularity granularity, uint64_t rows, uint64_t cols) {
  if (granularity == Granularity::none) return 0;
  if (granularity == Granularity::matrix) return 1;
  if (granularity == Granularity::row) return rows;
  return ceil_div(rows, kScaleBlock) * ceil_div(cols, kScaleBlock);
}

/// Which of a matrix's scales is that of an element; `cols` are the matrix's.
constexpr uint64_t scale_index(Granularity granularity, uint64_t row, uint64_t col, uint64_t cols) {
  if (granularity == Granularity::row) return row;
  if (granularity == Granularity::block) return row / kScaleBlock * ceil_div(cols, kScaleBlock) + col / kScaleBlock;
  return 0;
}

}  // namespace layercast
