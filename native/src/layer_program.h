// What crosses the bridge, as plain structs: a layer's plan resolved to numbers, and the report of running it.
// Fields of Op, Slice, ScaleMatrix, Agreement, Derived and Copy stand in the order of OP_FIELDS, SLICE_FIELDS and so on
// in native.ts; a test compares them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "dtype.h"
#include "scheme.h"

namespace layercast {

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
  uint64_t zero_cols;
  double constant;
  bool must_be_positive;
};

/// A range of a checkpoint file, a matrix: an element's neighbour below is `row_stride` bytes away, that to the right
/// `col_stride`. One of the two is an element's size.
struct Slice {
  uint64_t file;
  uint64_t offset;
  uint64_t row_stride;
  uint64_t rows;
  uint64_t cols;
  DType dtype;
  uint64_t to_row;
  uint64_t col_stride;
  int64_t scale;
};

/// The scales of a slice's FP8 codes, a matrix in a checkpoint file with an element for each block of another. The slice
/// begins at [first_row, first_col] of that other one.
struct ScaleMatrix {
  uint64_t file;
  uint64_t offset;
  uint64_t row_stride;
  DType dtype;
  uint64_t block_rows;
  uint64_t block_cols;
  uint64_t first_row;
  uint64_t first_col;
};

/// Two slices of one element that must have the same value.
struct Agreement {
  uint64_t slice;
  uint64_t with;
};

/// What is made of a matrix that is finished: `rows` rows of each of its heads, dequantized, perhaps transposed.
struct Derived {
  Scheme scheme;
  uint64_t weight_offset;
  DType weight_dtype;
  int64_t scale_offset;
  uint64_t out_offset;
  DType out_dtype;
  uint64_t heads;
  uint64_t head_rows;
  uint64_t first_row;
  uint64_t rows;
  uint64_t cols;
  bool transposed;
};

/// Rows of a file that are packed into buffers.
struct Copy {
  uint64_t file;
  uint64_t offset;
  uint64_t row_stride;
  uint64_t rows;
  uint64_t row_bytes;
  uint64_t to_offset;
};

inline constexpr size_t kOpFields = 13;
inline constexpr size_t kSliceFields = 9;
inline constexpr size_t kScaleFields = 8;
inline constexpr size_t kAgreementFields = 2;
inline constexpr size_t kDerivedFields = 12;
inline constexpr size_t kCopyFields = 6;

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
  std::vector<ScaleMatrix> scales = {};
  std::vector<Agreement> agreements = {};
  std::vector<Derived> derived = {};
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

/// A range of the arena's tensor bytes, or of buffers.
struct Span {
  uint64_t offset;
  uint64_t bytes;
};

/// Rows of numbers as they cross the bridge; throws invalid_argument for one that is not a number of its field.
std::vector<Op> ops_from_numbers(std::span<const double> numbers);
std::vector<Slice> slices_from_numbers(std::span<const double> numbers);
std::vector<ScaleMatrix> scales_from_numbers(std::span<const double> numbers);
std::vector<Agreement> agreements_from_numbers(std::span<const double> numbers);
std::vector<Derived> derived_from_numbers(std::span<const double> numbers);
std::vector<Copy> copies_from_numbers(std::span<const double> numbers);

/// Throws invalid_argument for a program that would read or write outside of its files or of `data_bytes`.
void check_program(const LayerProgram& program, uint64_t data_bytes);

/// Throws invalid_argument for copies that would read outside of `files`, write outside of buffers of so many bytes, or
/// write a byte twice.
void check_copies(std::span<const ProgramFile> files, std::span<const Copy> copies, uint64_t buffers_bytes);

/// Throws invalid_argument for a range that ends past `limit`; `what` says whose range it is.
void check_inside(uint64_t offset, uint64_t bytes, uint64_t limit, const std::string& what);

/// The dtype in which the op's elements come to the backend: that of its slices, F32 where they have different ones, or that of
/// what is made of them; an op without slices counts as F32, or as what it copies.
DType source_dtype(const LayerProgram& program, const Op& op);

/// What the op's values are rounded to before anything else, so that writing them as `out_dtype` is then exact.
DType rounding(const Op& op);

inline uint64_t scale_count(const Op& op) { return scale_count(granularity_of(op.scheme), op.rows, op.cols); }

/// Columns of it lie together in the file, instead of rows.
inline bool is_transposed(const Slice& slice) { return slice.cols > 1 && slice.col_stride != dtype_bytes(slice.dtype); }

/// Values are made of its codes while it is read.
inline bool is_dequantized(const Slice& slice) { return slice.scale != -1; }

/// It is E8M0, which becomes F32 while it is read.
inline bool is_widened(const Slice& slice) { return slice.dtype == DType::f8_e8m0; }

/// The backend gets its elements as they lie in the file.
inline bool is_as_stored(const Slice& slice) {
  return !is_transposed(slice) && !is_dequantized(slice) && !is_widened(slice);
}

}  // namespace layercast
