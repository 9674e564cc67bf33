// What the files of this folder share: the run of one layer program, a lane's scratch, and the steps of a tile.
// A tile is worked on in strips that fit into the nearest caches: place (look for what is not finite, find the amax;
// convert and round to F32 where need be), quantize (scale, codes), write (to the half, and into the digest).
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "../backend.h"
#include "../timing.h"
#include "vector_code.h"

namespace layercast {

/// A matrix that can be encoded, and its greatest absolute value as F32 bits, NaNs left out.
struct Placed {
  Elements elements;
  uint32_t amax_bits;
};

struct Lane {
  std::vector<uint8_t> host;  // grows to the largest tile met: a band of scale blocks, or one row that shares a scale
  std::vector<float> values;
  std::vector<Placed> placed;
  std::vector<uint8_t> codes;
  std::vector<float> scales;
};

struct Device {
  std::vector<Lane> lanes;
  const VectorCode* vectors;
};

struct OpState {
  std::atomic<uint64_t> non_finite = kNoElement;
  std::atomic<uint64_t> not_positive = kNoElement;
  std::atomic<uint32_t> amax_bits = 0;
};

struct Run {
  Device& device;
  std::vector<OpSpec> ops;
  std::unique_ptr<OpState[]> states;
  uint8_t* base;
  std::atomic<uint64_t> bytes_written = 0;
  std::atomic<uint64_t> place_ns = 0;
  std::atomic<uint64_t> quantize_ns = 0;
  std::atomic<uint64_t> write_ns = 0;
  std::atomic<uint64_t> digest = 0;
};

/// One tile on its way through a lane.
struct TileWork {
  Run& run;
  const OpSpec& spec;
  OpState& state;
  const Tile& tile;
  Lane& lane;
  const uint8_t* host;
  const VectorCode& vectors;
  RunTotals totals = {};  // of this tile; added to the run's once, at its end
  Stopwatch watch = {};
};

/// One head of what is derived, in a lane.
struct DeriveWork {
  Run& run;
  const Derived& derived;
  uint64_t head;
  Lane& lane;
  const VectorCode& vectors;
  RunTotals totals = {};
  Stopwatch watch = {};
};

/// Elements of a strip: as BF16, and their codes, they stay in the nearest cache.
inline constexpr uint64_t kStripElements = 16384;

/// Converts and rounds `count` elements, from the tile's element `first` on, to F32; returns the greatest absolute
/// value as F32 bits, NaNs left out. Notes those that are not finite (for codes, an infinity then becomes the largest
/// finite value) or not positive.
uint32_t place(TileWork& work, uint64_t first, uint64_t count, float* to);

/// The same for rows of the tile, each from `first` and its own row on. They stay where they are if they can be encoded
/// from there, else they go to `scratch`, packed.
Placed place_rows(TileWork& work, uint64_t first, uint64_t rows, uint64_t cols, float* scratch);

/// Notes bad elements as place does, without wanting the values.
void inspect(TileWork& work, uint64_t first, uint64_t count);

/// Copies bytes to `offset` of the half and adds them to the digest.
void write_bytes(TileWork& work, uint64_t offset, const void* bytes, uint64_t size);

/// Writes the tile's codes or values (packed rows of the tile's columns) from its element `first` on.
void write_elements(TileWork& work, uint64_t first, uint64_t count, const uint8_t* bytes);

void write_scales(TileWork& work, uint64_t first, const float* scales, uint64_t count);

/// The tile's elements in strips.
template <class Each>
void each_strip(const Tile& tile, const Each& each) {
  const uint64_t elements = tile.rows * tile.cols;
  for (uint64_t first = 0; first < elements; first += kStripElements) {
    each(first, std::min(kStripElements, elements - first));
  }
}

void derive(DeriveWork& work);

}  // namespace layercast
