// Classes of values that matrices are filled with: each has something that quantizers get wrong.
#pragma once

#include <cstdint>
#include <random>
#include <span>

#include "dtype.h"
#include "program.h"

namespace layercast::conformance {

struct ValueClass {
  const char* name;
  /// The bits of the element in row `row` and column `col`, in a source dtype.
  uint32_t (*bits)(std::mt19937& random, DType dtype, uint64_t row, uint64_t col);
};

std::span<const ValueClass> value_classes();

/// A matrix of the class, row by row.
ByteVector matrix_of(const ValueClass& values, DType dtype, uint64_t rows, uint64_t cols, uint32_t seed);

/// The nearest number of the dtype, as bits.
uint32_t bits_in(DType dtype, float value);

}  // namespace layercast::conformance
