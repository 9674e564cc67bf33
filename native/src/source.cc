#include "source.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "cpu/numbers.h"
#include "transpose.h"

namespace layercast {
namespace {

/// Columns of a transposed slice that are read before they are turned.
constexpr uint64_t kColumnsBytes = 1 << 20;

uint64_t offset_in_file(const Slice& slice, uint64_t row, uint64_t col) {
  return slice.offset + row * slice.row_stride + col * slice.col_stride;
}

bool is_constant(const Op& op) { return op.slice_count == 0 && !std::isnan(op.constant); }

/// Rows that lie packed at the end of the memory of as many wider ones become those, with zeros behind each.
void widen_rows(uint8_t* rows, uint64_t count, uint64_t bytes, uint64_t wide_bytes) {
  const uint8_t* from = rows + count * (wide_bytes - bytes);
  for (uint64_t row = 0; row < count; row++) {
    uint8_t* to = rows + row * wide_bytes;
    std::memmove(to, from + row * bytes, bytes);
    std::memset(to + bytes, 0, wide_bytes - bytes);
  }
}

void fill_constant(uint8_t* to, uint64_t elements, float value) {
  for (uint64_t i = 0; i < elements; i++) std::memcpy(to + i * sizeof value, &value, sizeof value);
}

}  // namespace

SourceFiles::SourceFiles(const LayerProgram& program, const PinnedSources& pinned)
    : program_(program), files_(program.files), pinned_(program.files.size()) {
  for (const Slice& slice : program.slices) open_file(slice.file, pinned);
  for (const ScaleMatrix& matrix : program.scales) open_file(matrix.file, pinned);
}

void SourceFiles::open_file(uint64_t index, const PinnedSources& pinned) {
  if (!files_.is_open(index)) pinned_[index] = pinned.find(files_.open(index));
}

uint64_t SourceFiles::read_tile(const Tile& tile, uint8_t* buffer) const {
  const Op& op = program_.ops[tile.op];
  if (is_constant(op)) {
    fill_constant(buffer, tile.rows * tile.cols, static_cast<float>(op.constant));
    return 0;
  }
  const DType dtype = source_dtype(program_, op);
  const uint64_t row_bytes = tile.cols * dtype_bytes(dtype);
  uint64_t row = 0, bytes_read = 0;  // of the tile: the next that is not filled yet
  each_part(tile, [&](const Slice& slice, const Part& part, uint64_t to_row) {
    std::memset(buffer + row * row_bytes, 0, (to_row - row) * row_bytes);
    // What is narrower than the tile is read to the end of its rows' memory, and then spread over it.
    const uint64_t part_row_bytes = part.cols * dtype_bytes(dtype);
    uint8_t* rows = buffer + to_row * row_bytes;
    bytes_read += read_part(slice, part, dtype, rows + part.rows * (row_bytes - part_row_bytes));
    if (part_row_bytes < row_bytes) widen_rows(rows, part.rows, part_row_bytes, row_bytes);
    row = to_row + part.rows;
  });
  std::memset(buffer + row * row_bytes, 0, (tile.rows - row) * row_bytes);
  return bytes_read;
}

template <class Each>
void SourceFiles::each_part(const Tile& tile, const Each& each) const {
  const Op& op = program_.ops[tile.op];
  const uint64_t end_col = std::min(tile.first_col + tile.cols, op.cols - op.zero_cols);
  if (end_col <= tile.first_col) return;
  const uint64_t end_row = tile.first_row + tile.rows;
  for (uint64_t i = op.first_slice; i < op.first_slice + op.slice_count; i++) {
    const Slice& slice = program_.slices[i];
    const uint64_t from = std::max(tile.first_row, slice.to_row);
    const uint64_t to = std::min(end_row, slice.to_row + slice.rows);
    if (from >= to) continue;
    const Part part = {from - slice.to_row, to - from, tile.first_col, end_col - tile.first_col};
    each(slice, part, from - tile.first_row);
  }
}

bool SourceFiles::seem_pinned() const {
  return !program_.slices.empty() && std::ranges::all_of(program_.slices, [&](const Slice& slice) {
    const PinnedFile* file = pinned_[slice.file].get();
    return file != nullptr && is_as_stored(slice) && file->is_current(slice.offset, 1);
  });
}

std::vector<HostRows> SourceFiles::pinned_rows(const Tile& tile) const {
  const DType dtype = source_dtype(program_, program_.ops[tile.op]);
  std::vector<HostRows> found;
  bool is_pinned = true;
  each_part(tile, [&](const Slice& slice, const Part& part, uint64_t to_row) {
    const uint64_t element_bytes = dtype_bytes(slice.dtype);
    const uint64_t row_bytes = part.cols * element_bytes, to_stride = tile.cols * element_bytes;
    const uint64_t offset = offset_in_file(slice, part.first_row, part.first_col);
    const PinnedFile* file = pinned_[slice.file].get();
    is_pinned = is_pinned && file != nullptr && is_as_stored(slice) && slice.dtype == dtype &&
                file->is_current(offset, (part.rows - 1) * slice.row_stride + row_bytes);
    if (!is_pinned) return;
    const uint8_t* at = file->bytes() + offset;
    found.push_back({at, slice.row_stride, part.rows, row_bytes, to_row * to_stride, to_stride});
  });
  return is_pinned ? found : std::vector<HostRows>();
}

float SourceFiles::read_value(uint64_t index) const {
  const Slice& slice = program_.slices[index];
  std::array<uint8_t, sizeof(float)> bytes = {};
  files_.read_exactly(slice.file, slice.offset, dtype_bytes(slice.dtype), bytes.data());
  if (is_widened(slice)) return float_from_e8m0(bytes[0]);
  uint32_t bits;
  std::memcpy(&bits, bytes.data(), sizeof bits);
  if (slice.dtype == DType::bf16) return float_from_bf16(static_cast<uint16_t>(bits));
  return slice.dtype == DType::f16 ? float_from_f16(static_cast<uint16_t>(bits)) : float_of(bits);
}

uint64_t SourceFiles::read_part(const Slice& slice, const Part& part, DType dtype, uint8_t* to) const {
  if (!is_dequantized(slice)) return slice.dtype == dtype ? read_elements(slice, part, to) : read_widened(slice, part, to);
  const ScaleMatrix& matrix = program_.scales[static_cast<uint64_t>(slice.scale)];
  const Part scales = scales_of(matrix, part);
  const uint64_t scale_bytes = dtype_bytes(matrix.dtype);
  std::vector<uint8_t> stored(scales.rows * scales.cols * scale_bytes);
  const uint64_t offset = matrix.offset + scales.first_row * matrix.row_stride + scales.first_col * scale_bytes;
  const FileRows rows = {matrix.file, offset, matrix.row_stride, scales.rows, scales.cols * scale_bytes};
  uint64_t bytes_read = files_.read_rows(rows, stored.data());
  bytes_read += read_elements(slice, part, to + part.rows * part.cols * (dtype_bytes(dtype) - 1));
  dequantize(matrix, part, floats_of_scales(matrix.dtype, stored.data(), scales.rows * scales.cols), dtype, to);
  return bytes_read;
}

uint64_t SourceFiles::read_elements(const Slice& slice, const Part& part, uint8_t* to) const {
  if (is_transposed(slice)) return read_transposed(slice, part, to);
  const uint64_t offset = offset_in_file(slice, part.first_row, part.first_col);
  return files_.read_rows({slice.file, offset, slice.row_stride, part.rows, part.cols * dtype_bytes(slice.dtype)}, to);
}

/// As F32. The elements lie at the end of their place until they are widened.
uint64_t SourceFiles::read_widened(const Slice& slice, const Part& part, uint8_t* to) const {
  const uint64_t elements = part.rows * part.cols;
  const uint64_t size = dtype_bytes(slice.dtype);
  const uint8_t* stored = to + elements * (sizeof(float) - size);
  const uint64_t bytes_read = read_elements(slice, part, to + elements * (sizeof(float) - size));
  widen(slice.dtype, stored, elements, to);
  return bytes_read;
}

/// Columns are read as they lie, as many as have room, and then turned.
uint64_t SourceFiles::read_transposed(const Slice& slice, const Part& part, uint8_t* to) const {
  static thread_local std::vector<uint8_t> columns(kColumnsBytes);
  const uint64_t size = dtype_bytes(slice.dtype);
  const uint64_t rows_at_once = std::min(part.rows, kColumnsBytes / size);
  const uint64_t cols_at_once = kColumnsBytes / (rows_at_once * size);
  uint64_t bytes_read = 0;
  for (uint64_t row = 0; row < part.rows; row += rows_at_once) {
    const uint64_t rows = std::min(rows_at_once, part.rows - row);
    for (uint64_t col = 0; col < part.cols; col += cols_at_once) {
      const uint64_t cols = std::min(cols_at_once, part.cols - col);
      const uint64_t offset = offset_in_file(slice, part.first_row + row, part.first_col + col);
      bytes_read += files_.read_rows({slice.file, offset, slice.col_stride, cols, rows * size}, columns.data());
      transpose(columns.data(), cols, rows, size, to + (row * part.cols + col) * size, part.cols);
    }
  }
  return bytes_read;
}

}  // namespace layercast
