// Checkpoint files as the plan saw them, and bytes out of them. Files are read, not touched through a mapping: one that is
// cut short meanwhile is an error, not a signal. What is pinned the device reads by itself.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "backend.h"
#include "layer_program.h"
#include "pinned_sources.h"

namespace layercast {

class SourceFiles {
 public:
  /// Opens the files that slices name; throws source_not_found or source_changed.
  SourceFiles(const LayerProgram& program, const PinnedSources& pinned);
  ~SourceFiles();
  SourceFiles(const SourceFiles&) = delete;
  SourceFiles& operator=(const SourceFiles&) = delete;

  /// Fills `buffer` with the tile's elements, rows packed; rows without a slice become the op's constant, or zero.
  /// Returns the bytes read, those between the columns included where they were read too.
  uint64_t read_tile(const Tile& tile, uint8_t* buffer) const;

  /// Whether the device can read by itself wherever a slice begins, so most likely all of them.
  bool seem_pinned() const;

  /// The tile's rows where the device can read all of them by itself; else none.
  std::vector<HostRows> pinned_rows(const Tile& tile) const;

  /// Throws source_changed where a file, or what its path names now, is not the plan's any more.
  void check_unchanged() const;

 private:
  uint64_t read_rows(const Slice& slice, uint64_t first_row, uint64_t rows, const Tile& tile, uint8_t* to) const;
  uint64_t read_full_rows(const Slice& slice, uint64_t offset, uint64_t rows, uint64_t row_bytes, uint8_t* to) const;
  void read_exactly(uint64_t file, uint64_t offset, uint64_t bytes, uint8_t* to) const;
  void open_file(uint64_t file, const PinnedSources& pinned);
  void close_all();

  const LayerProgram& program_;
  std::vector<int> descriptors_;  // -1: no slice names the file
  std::vector<std::shared_ptr<const PinnedFile>> pinned_;
};

}  // namespace layercast
