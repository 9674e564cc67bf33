// The elements of a program's slices out of checkpoint files. What is pinned the device reads by itself.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "backend.h"
#include "dequantize.h"
#include "layer_program.h"
#include "open_files.h"
#include "pinned_sources.h"

namespace layercast {

class SourceFiles {
 public:
  /// Opens the files that slices and scales name; throws source_not_found or source_changed.
  SourceFiles(const LayerProgram& program, const PinnedSources& pinned);

  /// Fills `buffer` with the tile's elements in the op's source dtype, rows packed; what no slice fills becomes the op's
  /// constant, or zero. Returns the bytes read, those between the columns included where they were read too.
  uint64_t read_tile(const Tile& tile, uint8_t* buffer) const;

  /// Whether the device can read by itself wherever a slice begins, and as it lies: so most likely all of them.
  bool seem_pinned() const;

  /// What of the tile slices fill, where the device can read all of that by itself; else none, and so where it is not to be
  /// copied as it lies.
  std::vector<HostRows> pinned_rows(const Tile& tile) const;

  /// The value of a slice of one element.
  float read_value(uint64_t slice) const;

  /// Throws source_changed where a file, or what its path names now, is not the plan's any more.
  void check_unchanged() const { files_.check_unchanged(); }

 private:
  /// Calls each(slice, part of it, row of the tile where that goes) for what of a tile slices fill, from the top.
  template <class Each>
  void each_part(const Tile& tile, const Each& each) const;
  uint64_t read_part(const Slice& slice, const Part& part, DType dtype, uint8_t* to) const;
  uint64_t read_widened(const Slice& slice, const Part& part, uint8_t* to) const;
  uint64_t read_elements(const Slice& slice, const Part& part, uint8_t* to) const;
  uint64_t read_transposed(const Slice& slice, const Part& part, uint8_t* to) const;
  void open_file(uint64_t file, const PinnedSources& pinned);

  const LayerProgram& program_;
  OpenFiles files_;  // those that something names
  std::vector<std::shared_ptr<const PinnedFile>> pinned_;
};

}  // namespace layercast
