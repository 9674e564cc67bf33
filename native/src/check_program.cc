// What a program, or a table of copies, may ask for. Whoever made it has proven more; here it only matters that no byte
// outside of its files, of the arena and of the buffers is touched, and that every backend can do what it says.
#include <algorithm>
#include <cmath>

#include "error.h"
#include "layer_program.h"

namespace layercast {

void check_inside(uint64_t offset, uint64_t bytes, uint64_t limit, const std::string& what) {
  if (offset > limit || bytes > limit - offset) {
    throw_invalid(what + ": " + std::to_string(bytes) + " bytes at " + std::to_string(offset) + " end past " +
                  std::to_string(limit));
  }
}

namespace {

constexpr uint64_t kMostCount = (uint64_t{1} << 53) - 1;

uint64_t times(uint64_t a, uint64_t b, const std::string& what) {
  uint64_t product;
  if (__builtin_mul_overflow(a, b, &product) || product > kMostCount) {
    throw_invalid(what + ": " + std::to_string(a) + " times " + std::to_string(b) + " is too much");
  }
  return product;
}

void require(bool holds, const std::string& what, const char* rule) {
  if (!holds) throw_invalid(what + ": " + rule);
}

// ---- What is read

/// From the first to the last byte of rows `stride` bytes apart.
uint64_t extent(uint64_t rows, uint64_t row_bytes, uint64_t stride, const std::string& name) {
  require(stride >= row_bytes || rows <= 1, name, "its rows, or its columns, overlap");
  return times(rows - 1, stride, name) + row_bytes;
}

void check_scale_matrix(const LayerProgram& program, size_t index) {
  const ScaleMatrix& matrix = program.scales[index];
  const std::string name = "scales " + std::to_string(index);
  require(matrix.file < program.files.size(), name, "their file is not in the program");
  require(is_scale_dtype(matrix.dtype), name, "their dtype is not one of BF16, F16, F32, F8_E8M0");
  require(matrix.block_rows > 0 && matrix.block_cols > 0, name, "a block has no elements");
}

void check_scales_of(const LayerProgram& program, const Slice& slice, const std::string& name) {
  require(slice.dtype == DType::f8_e4m3, name, "it has scales, and is not of FP8 codes");
  require(static_cast<uint64_t>(slice.scale) < program.scales.size(), name, "its scales are not in the program");
  const ScaleMatrix& matrix = program.scales[static_cast<uint64_t>(slice.scale)];
  const uint64_t rows = (matrix.first_row + slice.rows - 1) / matrix.block_rows + 1;
  const uint64_t cols = (matrix.first_col + slice.cols - 1) / matrix.block_cols + 1;
  const uint64_t bytes = extent(rows, times(cols, dtype_bytes(matrix.dtype), name), matrix.row_stride, name);
  check_inside(matrix.offset, bytes, program.files[matrix.file].size_bytes, name + " with its scales in their file");
}

void check_slice(const LayerProgram& program, size_t index) {
  const Slice& slice = program.slices[index];
  const std::string name = "slice " + std::to_string(index);
  require(slice.file < program.files.size(), name, "its file is not in the program");
  require(is_scale_dtype(slice.dtype) || slice.dtype == DType::f8_e4m3, name,
          "its dtype is not one of BF16, F16, F32, F8_E4M3, F8_E8M0");
  if (slice.rows == 0 || slice.cols == 0) {
    require(!is_dequantized(slice), name, "it has scales and no elements");
    return;
  }
  const uint64_t element_bytes = dtype_bytes(slice.dtype);
  const bool transposed = is_transposed(slice);
  require(!transposed || slice.row_stride == element_bytes || slice.rows == 1, name,
          "neither its rows nor its columns lie together");
  const uint64_t row_bytes = times(slice.cols, element_bytes, name);
  const uint64_t column_bytes = times(slice.rows, element_bytes, name);
  const uint64_t bytes = transposed ? extent(slice.cols, column_bytes, slice.col_stride, name)
                                    : extent(slice.rows, row_bytes, slice.row_stride, name);
  check_inside(slice.offset, bytes, program.files[slice.file].size_bytes, name + " in its file");
  if (is_dequantized(slice)) check_scales_of(program, slice, name);
}

void check_agreement(const LayerProgram& program, size_t index) {
  const std::string name = "agreement " + std::to_string(index);
  for (const uint64_t slice : {program.agreements[index].slice, program.agreements[index].with}) {
    require(slice < program.slices.size(), name, "a slice of it is not in the program");
    const Slice& one = program.slices[slice];
    require(one.rows == 1 && one.cols == 1, name, "a slice of it is not one element");
    require(is_scale_dtype(one.dtype), name, "a slice of it is not of BF16, F16, F32 or F8_E8M0");
  }
}

// ---- What is made of it

void check_coverage(const LayerProgram& program, const Op& op, const std::string& name) {
  require(op.first_slice <= program.slices.size() && op.slice_count <= program.slices.size() - op.first_slice, name,
          "its slices are not in the program");
  require(op.zero_rows <= op.rows, name, "it has more zero rows than rows");
  require(op.zero_cols <= op.cols, name, "it has more zero columns than columns");
  uint64_t row = 0, filled = 0;
  for (uint64_t i = op.first_slice; i < op.first_slice + op.slice_count; i++) {
    const Slice& slice = program.slices[i];
    require(slice.cols == op.cols - op.zero_cols, name, "a slice has another number of columns");
    require(slice.to_row >= row, name, "its slices are not in the order of the rows they fill");
    const DType first = program.slices[op.first_slice].dtype;
    require(slice.dtype == first || (is_source_dtype(slice.dtype) && is_source_dtype(first)), name,
            "some of its slices have codes, and others values");
    require(is_dequantized(slice) == is_dequantized(program.slices[op.first_slice]), name,
            "some of its slices have scales, and others do not");
    row = slice.to_row + slice.rows;
    filled += slice.rows;
  }
  const bool constant = op.slice_count == 0 && !std::isnan(op.constant);
  require(std::isnan(op.constant) || op.slice_count == 0, name, "it has slices and a constant");
  require(constant || (row <= op.rows && filled == op.rows - op.zero_rows), name,
          "its slices and zero rows do not fill it");
}

/// Codes are either made values of, or they are copied.
void check_codes(const LayerProgram& program, const Op& op, const std::string& name) {
  const Slice* first = op.slice_count == 0 ? nullptr : &program.slices[op.first_slice];
  const bool reads_codes = first != nullptr && first->dtype == DType::f8_e4m3 && !is_dequantized(*first);
  if (op.scheme != Scheme::none || op.out_dtype != DType::f8_e4m3) {
    require(!reads_codes, name, "codes without scales can only be copied");
    return;
  }
  require(first == nullptr || reads_codes, name, "under scheme none values cannot be written as F8_E4M3");
  require(std::isnan(op.constant), name, "a constant cannot be written as F8_E4M3");
  require(op.round_dtype == DType::none, name, "codes are not rounded");
}

void check_op(const LayerProgram& program, size_t index, uint64_t data_bytes) {
  const Op& op = program.ops[index];
  const std::string name = "op " + std::to_string(index);
  const uint64_t element_bytes = dtype_bytes(op.out_dtype);
  require(element_bytes > 0 && op.out_dtype != DType::u8, name, "it is of a dtype that is not written");
  const uint64_t elements = times(op.rows, op.cols, name);
  require(op.round_dtype == DType::none || is_source_dtype(op.round_dtype), name, "it rounds to a dtype it cannot");
  check_inside(op.out_offset, times(elements, element_bytes, name), data_bytes, name + " in the arena");
  require(op.out_offset % element_bytes == 0, name, "its offset is not aligned");
  if (op.scheme == Scheme::none) {
    require(op.scale_offset == -1, name, "scheme none has no scales");
    require(op.round_dtype == DType::none || op.round_dtype == op.out_dtype || op.out_dtype == DType::f32, name,
            "its values would be rounded twice");
  } else {
    require(op.out_dtype == DType::f8_e4m3, name, "its scheme makes F8_E4M3 codes");
    require(op.scale_offset >= 0 && op.scale_offset % 4 == 0, name, "its scales' offset is missing or not aligned");
    check_inside(static_cast<uint64_t>(op.scale_offset), times(scale_count(op), 4, name), data_bytes,
                 name + " with its scales in the arena");
  }
  check_coverage(program, op, name);
  check_codes(program, op, name);
}

bool are_disjoint(const Span& a, const Span& b) {
  return a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset;
}

/// The held matrix of a derived one; its offset and dtype belong together.
Span held_matrix(const Derived& derived, uint64_t data_bytes, const std::string& name) {
  const bool quantized = derived.scheme != Scheme::none;
  require(quantized ? derived.weight_dtype == DType::f8_e4m3 : is_source_dtype(derived.weight_dtype), name,
          "what it is made from has a dtype that is not its scheme's");
  const uint64_t element_bytes = dtype_bytes(derived.weight_dtype);
  require(derived.weight_offset % element_bytes == 0, name, "the offset of what it is made from is not aligned");
  const uint64_t rows = times(derived.heads, derived.head_rows, name);
  const uint64_t bytes = times(times(rows, derived.cols, name), element_bytes, name);
  check_inside(derived.weight_offset, bytes, data_bytes, name + " with what it is made from in the arena");
  return {derived.weight_offset, bytes};
}

/// Its scales; nothing under scheme none.
Span held_scales(const Derived& derived, uint64_t data_bytes, const std::string& name) {
  if (derived.scheme == Scheme::none) {
    require(derived.scale_offset == -1, name, "scheme none has no scales");
    return {0, 0};
  }
  require(derived.scale_offset >= 0 && derived.scale_offset % 4 == 0, name,
          "its scales' offset is missing or not aligned");
  const uint64_t scales = scale_count(granularity_of(derived.scheme), derived.heads * derived.head_rows, derived.cols);
  const Span span = {static_cast<uint64_t>(derived.scale_offset), times(scales, 4, name)};
  check_inside(span.offset, span.bytes, data_bytes, name + " with its scales in the arena");
  return span;
}

void check_derived(const LayerProgram& program, size_t index, uint64_t data_bytes) {
  const Derived& derived = program.derived[index];
  const std::string name = "derived " + std::to_string(index);
  require(derived.heads > 0 && derived.rows > 0 && derived.cols > 0, name, "it has no elements");
  const Span weight = held_matrix(derived, data_bytes, name);
  const Span scales = held_scales(derived, data_bytes, name);
  require(derived.first_row <= derived.head_rows && derived.rows <= derived.head_rows - derived.first_row, name,
          "its rows are not within a head's");
  require(is_source_dtype(derived.out_dtype), name, "values can be written as BF16, F16 or F32 only");
  require(derived.scheme != Scheme::none || derived.out_dtype == derived.weight_dtype, name,
          "under scheme none values are taken as they are");
  const uint64_t element_bytes = dtype_bytes(derived.out_dtype);
  require(derived.out_offset % element_bytes == 0, name, "its offset is not aligned");
  const uint64_t elements = times(times(derived.heads, derived.rows, name), derived.cols, name);
  const Span out = {derived.out_offset, times(elements, element_bytes, name)};
  check_inside(out.offset, out.bytes, data_bytes, name + " in the arena");
  require(are_disjoint(out, weight) && are_disjoint(out, scales), name,
          "it would be written over what it is made from");
}

// ---- What is packed

/// Where it goes in the buffers.
Span check_copy(std::span<const ProgramFile> files, const Copy& copy, uint64_t buffers_bytes, const std::string& name) {
  require(copy.file < files.size(), name, "its file is not in the list");
  const uint64_t bytes = times(copy.rows, copy.row_bytes, name);
  check_inside(copy.to_offset, bytes, buffers_bytes, name + " in the buffers");
  if (bytes > 0) {
    const uint64_t read = extent(copy.rows, copy.row_bytes, copy.row_stride, name);
    check_inside(copy.offset, read, files[copy.file].size_bytes, name + " in its file");
  }
  return {copy.to_offset, bytes};
}

}  // namespace

void check_copies(std::span<const ProgramFile> files, std::span<const Copy> copies, uint64_t buffers_bytes) {
  std::vector<Span> filled;
  for (size_t i = 0; i < copies.size(); i++) {
    const Span span = check_copy(files, copies[i], buffers_bytes, "copy " + std::to_string(i));
    if (span.bytes > 0) filled.push_back(span);
  }
  std::ranges::sort(filled, {}, &Span::offset);
  for (size_t i = 1; i < filled.size(); i++) {
    require(are_disjoint(filled[i - 1], filled[i]), "copies to " + std::to_string(filled[i].offset),
            "a byte of the buffers would be written twice");
  }
}

void check_program(const LayerProgram& program, uint64_t data_bytes) {
  for (size_t i = 0; i < program.scales.size(); i++) check_scale_matrix(program, i);
  for (size_t i = 0; i < program.slices.size(); i++) check_slice(program, i);
  for (size_t i = 0; i < program.agreements.size(); i++) check_agreement(program, i);
  for (size_t i = 0; i < program.ops.size(); i++) check_op(program, i, data_bytes);
  for (size_t i = 0; i < program.derived.size(); i++) check_derived(program, i, data_bytes);
}

}  // namespace layercast
