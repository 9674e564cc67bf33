#include "dequantize.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "cpu/numbers.h"
#include "cpu/vector_code.h"

namespace layercast {
namespace {

/// Codes that are made values of together: as F32 they stay in the nearest cache.
constexpr uint64_t kStripElements = 2048;

const VectorCode& vectors() {
  static const VectorCode& chosen = chosen_vector_code();
  return chosen;
}

void to_floats(DType dtype, const uint8_t* from, uint64_t count, float* to) {
  if (dtype == DType::f8_e8m0) {
    std::transform(from, from + count, to, float_from_e8m0);
  } else {
    vectors().convert(dtype, DType::none, from, count, to);
  }
}

/// From the column on, how many have the same scale.
uint64_t cols_of_scale(const ScaleMatrix& matrix, uint64_t col) {
  return matrix.block_cols - (matrix.first_col + col) % matrix.block_cols;
}

/// The codes of columns [col, col + count) of a row -> F32. `scales` are the row's.
void decode_strip(const ScaleMatrix& matrix, const Part& part, const float* scales, const uint8_t* codes, uint64_t col,
                  uint64_t count, float* to) {
  const uint64_t first_scale = (matrix.first_col + part.first_col) / matrix.block_cols;
  for (uint64_t done = 0; done < count;) {
    const uint64_t at = part.first_col + col + done;
    const uint64_t some = std::min(count - done, cols_of_scale(matrix, at));
    const float scale = scales[(matrix.first_col + at) / matrix.block_cols - first_scale];
    vectors().decode(codes + done, some, scale, to + done);
    done += some;
  }
}

}  // namespace

Part scales_of(const ScaleMatrix& matrix, const Part& part) {
  const uint64_t first_row = (matrix.first_row + part.first_row) / matrix.block_rows;
  const uint64_t last_row = (matrix.first_row + part.first_row + part.rows - 1) / matrix.block_rows;
  const uint64_t first_col = (matrix.first_col + part.first_col) / matrix.block_cols;
  const uint64_t last_col = (matrix.first_col + part.first_col + part.cols - 1) / matrix.block_cols;
  return {first_row, last_row - first_row + 1, first_col, last_col - first_col + 1};
}

std::vector<float> floats_of_scales(DType dtype, const uint8_t* from, uint64_t count) {
  std::vector<float> scales(count);
  to_floats(dtype, from, count, scales.data());
  return scales;
}

void widen(DType dtype, const uint8_t* from, uint64_t count, uint8_t* values) {
  // A strip is read before its values are written, and those end before the next strip begins.
  std::array<float, kStripElements> strip;
  for (uint64_t done = 0; done < count;) {
    const uint64_t some = std::min(kStripElements, count - done);
    to_floats(dtype, from + done * dtype_bytes(dtype), some, strip.data());
    std::memcpy(values + done * sizeof(float), strip.data(), some * sizeof(float));
    done += some;
  }
}

void dequantize(const ScaleMatrix& matrix, const Part& part, const std::vector<float>& scales, DType dtype,
                uint8_t* values) {
  const Part of_scales = scales_of(matrix, part);
  const uint64_t size = dtype_bytes(dtype);
  // A strip's codes are read before its values are written, and those end before the next strip's codes begin.
  const uint8_t* codes = values + part.rows * part.cols * (size - 1);
  std::array<float, kStripElements> strip;
  for (uint64_t row = 0; row < part.rows; row++) {
    const uint64_t scale_row = (matrix.first_row + part.first_row + row) / matrix.block_rows - of_scales.first_row;
    for (uint64_t col = 0; col < part.cols; col += kStripElements) {
      const uint64_t count = std::min(kStripElements, part.cols - col);
      const uint64_t element = row * part.cols + col;
      decode_strip(matrix, part, scales.data() + scale_row * of_scales.cols, codes + element, col, count,
                   strip.data());
      vectors().narrow(dtype, strip.data(), count, values + element * size);
    }
  }
}

}  // namespace layercast
