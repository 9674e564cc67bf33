// What a scheme is on the CPU: the code of its file in this folder.
#pragma once

#include <array>

#include "run.h"

namespace layercast {

/// What a tile needs of its lane's memory, in elements. It is kept from one tile to the next.
struct Scratch {
  uint64_t values = 0;
  uint64_t placed = 0;
  uint64_t codes = 0;  // in bytes
  uint64_t scales = 0;
};

struct SchemeCode {
  Scratch (*scratch)(const TileWork& work);
  /// The tile's amax goes into the op's. Only where one scale is for the whole matrix, else null.
  void (*measure)(TileWork& work);
  /// Writes the tile's codes and the scales that belong to them.
  void (*put)(TileWork& work);
};

extern const SchemeCode kNone, kFp8Tensor, kFp8Channel, kFp8Block;

/// In the order of their codes.
inline constexpr std::array kSchemeCodes = {
    &kNone,
    &kFp8Tensor,
    &kFp8Channel,
    &kFp8Block,
};
static_assert(kSchemeCodes.size() == kSchemes.size(), "each scheme has its code");

}  // namespace layercast
