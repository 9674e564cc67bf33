// A matrix in memory -> its transpose, elements of 1, 2 or 4 bytes.
#pragma once

#include <cstdint>

namespace layercast {

/// Element (r, c) of `from`, whose rows are packed, goes to row c and column r of `to`, whose rows are `to_stride` elements
/// apart.
void transpose(const uint8_t* from, uint64_t rows, uint64_t cols, uint64_t element_bytes, uint8_t* to,
               uint64_t to_stride);

}  // namespace layercast
