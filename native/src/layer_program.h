// What crosses the bridge, as plain structs: a layer's plan resolved to numbers, and the report of running it.
// Fields of Op and Slice stand in the order of OP_FIELDS and SLICE_FIELDS in native.ts; a test compares them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "dtype.h"

namespace layercast {

enum class Scheme : int32_t { none = 0, fp8_tensor = 1, fp8_channel = 2, fp8_block = 3 };

/// Rows and columns of a scale block of fp8_block.
inline constexpr uint64_t kScaleBlock = 128;

/// One kernel tensor, or one expert's part of it.
struct Op {
  Scheme scheme;
  DType out_dtype;
  DType round_dtype;
  uint64_t rows;
  uint64_t cols;
  uint64_t out_offset;
  int64_t scale_offset;
  uint64_t first_slice;
  uint64_t slice_count;
  uint64_t zero_rows;
  double constant;
  bool must_be_positive;
};

/// A range of a checkpoint file, a matrix whose rows are `row_stride` bytes apart.
struct Slice {
  uint64_t file;
  uint64_t offset;
  uint64_t row_stride;
  uint64_t rows;
  uint64_t cols;
  DType dtype;
  uint64_t to_row;
};

inline constexpr size_t kOpFields = 12;
inline constexpr size_t kSliceFields = 7;

struct ProgramFile {
  std::string path;
  uint64_t size_bytes;
  int64_t mtime_ns;
  uint64_t inode;
};

struct LayerProgram {
  std::vector<ProgramFile> files;
  std::vector<Op> ops;
  std::vector<Slice> slices;
  bool allow_non_finite;
};

struct LayerReport {
  uint64_t bytes_read;
  uint64_t bytes_written;
  uint64_t read_ns;
  uint64_t place_ns;
  uint64_t quantize_ns;
  uint64_t write_ns;
  uint64_t digest;
};

/// A range of the arena's tensor bytes.
struct Span {
  uint64_t offset;
  uint64_t bytes;
};

/// Rows of numbers as they cross the bridge; throws invalid_argument for one that is not a number of its field.
std::vector<Op> ops_from_numbers(std::span<const double> numbers);
std::vector<Slice> slices_from_numbers(std::span<const double> numbers);

/// Throws invalid_argument for a program that would read or write outside of its files or of `data_bytes`.
void check_program(const LayerProgram& program, uint64_t data_bytes);

/// The dtype of the op's slices; an op without slices counts as F32.
DType source_dtype(const LayerProgram& program, const Op& op);

/// What the op's values are rounded to before anything else, so that writing them as `out_dtype` is then exact.
DType rounding(const Op& op);

uint64_t scale_count(const Op& op);

inline uint64_t ceil_div(uint64_t value, uint64_t by) { return value / by + (value % by != 0); }

}  // namespace layercast
