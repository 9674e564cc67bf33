// FP8 codes of a checkpoint -> values, as they come out of the file: code times scale in F32, then rounded where values
// of 16 bits are wanted.
#pragma once

#include <cstdint>
#include <vector>

#include "layer_program.h"

namespace layercast {

/// Rows and columns of a matrix.
struct Part {
  uint64_t first_row;
  uint64_t rows;
  uint64_t first_col;
  uint64_t cols;
};

/// Of a scale matrix, the part that a part of its slice needs.
Part scales_of(const ScaleMatrix& matrix, const Part& part);

/// Values as they lie in a file -> F32, exactly. What is read may be the end of the memory at `values` that those fill.
void widen(DType dtype, const uint8_t* from, uint64_t count, uint8_t* values);

/// Scales as they lie in a file -> F32.
std::vector<float> floats_of_scales(DType dtype, const uint8_t* from, uint64_t count);

/// Makes values of a part's codes, which are at the end of the memory at `values` that those fill. `scales` are the part's,
/// packed by rows.
void dequantize(const ScaleMatrix& matrix, const Part& part, const std::vector<float>& scales, DType dtype,
                uint8_t* values);

}  // namespace layercast
