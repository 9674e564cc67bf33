#include "transpose.h"

#include <algorithm>
#include <cstring>

namespace layercast {
namespace {

/// Blocks of so many rows and columns, whose cache lines are read and written whole while they are near.
constexpr uint64_t kBlock = 32;

template <uint64_t kBytes>
void transpose_of(const uint8_t* from, uint64_t rows, uint64_t cols, uint8_t* to, uint64_t to_stride) {
  for (uint64_t first_col = 0; first_col < cols; first_col += kBlock) {
    const uint64_t end_col = std::min(cols, first_col + kBlock);
    for (uint64_t first_row = 0; first_row < rows; first_row += kBlock) {
      const uint64_t end_row = std::min(rows, first_row + kBlock);
      for (uint64_t col = first_col; col < end_col; col++) {
        uint8_t* to_row = to + col * to_stride * kBytes;
        for (uint64_t row = first_row; row < end_row; row++) {
          std::memcpy(to_row + row * kBytes, from + (row * cols + col) * kBytes, kBytes);
        }
      }
    }
  }
}

}  // namespace

void transpose(const uint8_t* from, uint64_t rows, uint64_t cols, uint64_t element_bytes, uint8_t* to,
               uint64_t to_stride) {
  if (element_bytes == 1) return transpose_of<1>(from, rows, cols, to, to_stride);
  if (element_bytes == 2) return transpose_of<2>(from, rows, cols, to, to_stride);
  transpose_of<4>(from, rows, cols, to, to_stride);
}

}  // namespace layercast
