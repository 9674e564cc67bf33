#include "layer_program.h"

#include <algorithm>
#include <cmath>
#include <span>

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

  Scheme next_scheme() { return next_enum<Scheme>(0, static_cast<int64_t>(kSchemes.size()) - 1); }

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

/// An item a row of `width` numbers; errors call the rows `plural`, and one of them `singular`.
template <class Item, class Read>
std::vector<Item> items_from(std::span<const double> numbers, size_t width, const char* plural, const char* singular,
                             const Read& read) {
  if (numbers.size() % width != 0) {
    throw_invalid(std::string(plural) + ": " + std::to_string(numbers.size()) + " numbers are not rows of " +
                  std::to_string(width));
  }
  std::vector<Item> items(numbers.size() / width);
  for (size_t i = 0; i < items.size(); i++) {
    Row row(singular, numbers, i, width);
    read(row, items[i]);
  }
  return items;
}

}  // namespace

std::vector<Op> ops_from_numbers(std::span<const double> numbers) {
  return items_from<Op>(numbers, kOpFields, "ops", "op", [](Row& row, Op& op) {
    op.scheme = row.next_scheme();
    op.out_dtype = row.next_enum<DType>(0, 4);
    op.round_dtype = row.next_enum<DType>(-1, 4);
    op.rows = row.next_count();
    op.cols = row.next_count();
    op.out_offset = row.next_count();
    op.scale_offset = row.next_integer(-1);
    op.first_slice = row.next_count();
    op.slice_count = row.next_count();
    op.zero_rows = row.next_count();
    op.zero_cols = row.next_count();
    op.constant = row.next();
    op.must_be_positive = row.next_enum<int>(0, 1) != 0;
  });
}

std::vector<Slice> slices_from_numbers(std::span<const double> numbers) {
  return items_from<Slice>(numbers, kSliceFields, "slices", "slice", [](Row& row, Slice& slice) {
    slice.file = row.next_count();
    slice.offset = row.next_count();
    slice.row_stride = row.next_count();
    slice.rows = row.next_count();
    slice.cols = row.next_count();
    slice.dtype = row.next_enum<DType>(0, 5);
    slice.to_row = row.next_count();
    slice.col_stride = row.next_count();
    slice.scale = row.next_integer(-1);
  });
}

std::vector<ScaleMatrix> scales_from_numbers(std::span<const double> numbers) {
  return items_from<ScaleMatrix>(numbers, kScaleFields, "scales", "scales", [](Row& row, ScaleMatrix& matrix) {
    matrix.file = row.next_count();
    matrix.offset = row.next_count();
    matrix.row_stride = row.next_count();
    matrix.dtype = row.next_enum<DType>(0, 5);
    matrix.block_rows = row.next_count();
    matrix.block_cols = row.next_count();
    matrix.first_row = row.next_count();
    matrix.first_col = row.next_count();
  });
}

std::vector<Agreement> agreements_from_numbers(std::span<const double> numbers) {
  return items_from<Agreement>(numbers, kAgreementFields, "agreements", "agreement", [](Row& row, Agreement& agreement) {
    agreement.slice = row.next_count();
    agreement.with = row.next_count();
  });
}

std::vector<Derived> derived_from_numbers(std::span<const double> numbers) {
  return items_from<Derived>(numbers, kDerivedFields, "derived", "derived", [](Row& row, Derived& derived) {
    derived.scheme = row.next_scheme();
    derived.weight_offset = row.next_count();
    derived.weight_dtype = row.next_enum<DType>(0, 4);
    derived.scale_offset = row.next_integer(-1);
    derived.out_offset = row.next_count();
    derived.out_dtype = row.next_enum<DType>(0, 4);
    derived.heads = row.next_count();
    derived.head_rows = row.next_count();
    derived.first_row = row.next_count();
    derived.rows = row.next_count();
    derived.cols = row.next_count();
    derived.transposed = row.next_enum<int>(0, 1) != 0;
  });
}

std::vector<Copy> copies_from_numbers(std::span<const double> numbers) {
  return items_from<Copy>(numbers, kCopyFields, "copies", "copy", [](Row& row, Copy& copy) {
    copy.file = row.next_count();
    copy.offset = row.next_count();
    copy.row_stride = row.next_count();
    copy.rows = row.next_count();
    copy.row_bytes = row.next_count();
    copy.to_offset = row.next_count();
  });
}

DType source_dtype(const LayerProgram& program, const Op& op) {
  if (op.slice_count == 0) {
    return op.out_dtype == DType::f8_e4m3 && op.scheme == Scheme::none ? op.out_dtype : DType::f32;
  }
  const std::span<const Slice> slices(program.slices.data() + op.first_slice, op.slice_count);
  const Slice& first = slices.front();
  const bool same = std::ranges::all_of(slices, [&](const Slice& slice) { return slice.dtype == first.dtype; });
  if (!same || first.dtype == DType::f8_e8m0) return DType::f32;
  if (!is_dequantized(first)) return first.dtype;
  return op.round_dtype == DType::none ? DType::f32 : op.round_dtype;
}

DType rounding(const Op& op) {
  if (op.slice_count == 0 || (op.scheme == Scheme::none && op.round_dtype == DType::none)) {
    return is_source_dtype(op.out_dtype) ? op.out_dtype : DType::none;
  }
  return op.round_dtype;
}

}  // namespace layercast
