#include "layer_program.h"

#include <cmath>

#include "error.h"

namespace layercast {
namespace {

constexpr double kMaxExact = 9007199254740991.0;  // 2^53 - 1

/// One row of numbers, read field by field; an error names the row and the field's place in it.
class Row {
 public:
  Row(const char* what, std::span<const double> numbers, size_t row, size_t width)
      : what_(what), row_(row), fields_(numbers.subspan(row * width, width)) {}

  double next() { return fields_[field_++]; }

  uint64_t next_count() { return static_cast<uint64_t>(next_integer(0)); }

  int64_t next_integer(int64_t lowest) {
    const double value = next();
    if (!(value >= static_cast<double>(lowest) && value <= kMaxExact) || value != std::floor(value)) refuse(value);
    return static_cast<int64_t>(value);
  }

  template <class Enum>
  Enum next_enum(int64_t lowest, int64_t highest) {
    const int64_t value = next_integer(lowest);
    if (value > highest) refuse(static_cast<double>(value));
    return static_cast<Enum>(value);
  }

 private:
  [[noreturn]] void refuse(double value) const {
    throw_invalid(std::string(what_) + " " + std::to_string(row_) + ": field " + std::to_string(field_ - 1) +
                  " cannot be " + std::to_string(value));
  }

  const char* what_;
  size_t row_;
  std::span<const double> fields_;
  size_t field_ = 0;
};

size_t row_count(const char* what, std::span<const double> numbers, size_t width) {
  if (numbers.size() % width != 0) {
    throw_invalid(std::string(what) + ": " + std::to_string(numbers.size()) + " numbers are not rows of " +
                  std::to_string(width));
  }
  return numbers.size() / width;
}

uint64_t times(uint64_t a, uint64_t b, const std::string& what) {
  uint64_t product;
  if (__builtin_mul_overflow(a, b, &product) || product > static_cast<uint64_t>(kMaxExact)) {
    throw_invalid(what + ": " + std::to_string(a) + " times " + std::to_string(b) + " is too much");
  }
  return product;
}

void require(bool holds, const std::string& op, const char* rule) {
  if (!holds) throw_invalid(op + ": " + rule);
}

void check_inside(uint64_t offset, uint64_t bytes, uint64_t limit, const std::string& what) {
  if (offset > limit || bytes > limit - offset) {
    throw_invalid(what + ": " + std::to_string(bytes) + " bytes at " + std::to_string(offset) + " end past " +
                  std::to_string(limit));
  }
}

void check_slice(const LayerProgram& program, size_t index) {
  const Slice& slice = program.slices[index];
  const std::string name = "slice " + std::to_string(index);
  require(slice.file < program.files.size(), name, "its file is not in the program");
  require(is_source_dtype(slice.dtype), name, "its dtype is not one of BF16, F16, F32");
  const uint64_t row_bytes = times(slice.cols, dtype_bytes(slice.dtype), name);
  require(slice.row_stride >= row_bytes || slice.rows <= 1, name, "its rows overlap");
  if (slice.rows == 0 || slice.cols == 0) return;
  const uint64_t bytes = times(slice.rows - 1, slice.row_stride, name) + row_bytes;
  check_inside(slice.offset, bytes, program.files[slice.file].size_bytes, name + " in its file");
}

void check_coverage(const LayerProgram& program, const Op& op, const std::string& name) {
  require(op.first_slice <= program.slices.size() && op.slice_count <= program.slices.size() - op.first_slice, name,
          "its slices are not in the program");
  require(op.zero_rows <= op.rows, name, "it has more zero rows than rows");
  uint64_t row = 0;
  for (uint64_t i = op.first_slice; i < op.first_slice + op.slice_count; i++) {
    const Slice& slice = program.slices[i];
    require(slice.cols == op.cols, name, "a slice has another number of columns");
    require(slice.to_row == row, name, "its slices are not in the order of the rows they fill, without gaps");
    require(slice.dtype == program.slices[op.first_slice].dtype, name, "its slices have different dtypes");
    row += slice.rows;
  }
  const bool constant = op.slice_count == 0 && !std::isnan(op.constant);
  require(std::isnan(op.constant) || op.slice_count == 0, name, "it has slices and a constant");
  require(constant || row == op.rows - op.zero_rows, name, "its slices and zero rows do not fill it");
}

void check_op(const LayerProgram& program, size_t index, uint64_t data_bytes) {
  const Op& op = program.ops[index];
  const std::string name = "op " + std::to_string(index);
  const uint64_t element_bytes = dtype_bytes(op.out_dtype);
  const uint64_t elements = times(op.rows, op.cols, name);
  require(op.round_dtype == DType::none || is_source_dtype(op.round_dtype), name, "it rounds to a dtype it cannot");
  check_inside(op.out_offset, times(elements, element_bytes, name), data_bytes, name + " in the arena");
  require(op.out_offset % element_bytes == 0, name, "its offset is not aligned");
  if (op.scheme == Scheme::none) {
    require(is_source_dtype(op.out_dtype), name, "values can be written as BF16, F16 or F32 only");
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
}

}  // namespace

std::vector<Op> ops_from_numbers(std::span<const double> numbers) {
  std::vector<Op> ops(row_count("ops", numbers, kOpFields));
  for (size_t i = 0; i < ops.size(); i++) {
    Row row("op", numbers, i, kOpFields);
    Op& op = ops[i];
    op.scheme = row.next_enum<Scheme>(0, 3);
    op.out_dtype = row.next_enum<DType>(0, 4);
    op.round_dtype = row.next_enum<DType>(-1, 4);
    op.rows = row.next_count();
    op.cols = row.next_count();
    op.out_offset = row.next_count();
    op.scale_offset = row.next_integer(-1);
    op.first_slice = row.next_count();
    op.slice_count = row.next_count();
    op.zero_rows = row.next_count();
    op.constant = row.next();
    op.must_be_positive = row.next_enum<int>(0, 1) != 0;
  }
  return ops;
}

std::vector<Slice> slices_from_numbers(std::span<const double> numbers) {
  std::vector<Slice> slices(row_count("slices", numbers, kSliceFields));
  for (size_t i = 0; i < slices.size(); i++) {
    Row row("slice", numbers, i, kSliceFields);
    Slice& slice = slices[i];
    slice.file = row.next_count();
    slice.offset = row.next_count();
    slice.row_stride = row.next_count();
    slice.rows = row.next_count();
    slice.cols = row.next_count();
    slice.dtype = row.next_enum<DType>(0, 4);
    slice.to_row = row.next_count();
  }
  return slices;
}

void check_program(const LayerProgram& program, uint64_t data_bytes) {
  for (size_t i = 0; i < program.slices.size(); i++) check_slice(program, i);
  for (size_t i = 0; i < program.ops.size(); i++) check_op(program, i, data_bytes);
}

DType source_dtype(const LayerProgram& program, const Op& op) {
  return op.slice_count == 0 ? DType::f32 : program.slices[op.first_slice].dtype;
}

DType rounding(const Op& op) {
  if (op.slice_count == 0 || (op.scheme == Scheme::none && op.round_dtype == DType::none)) {
    return is_source_dtype(op.out_dtype) ? op.out_dtype : DType::none;
  }
  return op.round_dtype;
}

uint64_t scale_count(const Op& op) {
  switch (op.scheme) {
    case Scheme::none:
      return 0;
    case Scheme::fp8_tensor:
      return 1;
    case Scheme::fp8_channel:
      return op.rows;
    case Scheme::fp8_block:
      return ceil_div(op.rows, kScaleBlock) * ceil_div(op.cols, kScaleBlock);
  }
  return 0;
}

}  // namespace layercast
