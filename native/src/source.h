// Checkpoint files as the plan saw them, and bytes out of them. Files are read, never mapped: one that is cut short
// meanwhile is an error, not a signal.
#pragma once

#include <cstdint>
#include <vector>

#include "backend.h"
#include "layer_program.h"

namespace layercast {

class SourceFiles {
 public:
  /// Opens the files that slices name; throws source_not_found or source_changed.
  explicit SourceFiles(const LayerProgram& program);
  ~SourceFiles();
  SourceFiles(const SourceFiles&) = delete;
  SourceFiles& operator=(const SourceFiles&) = delete;

  /// Fills `buffer` with the tile's elements, rows packed; rows without a slice become the op's constant, or zero.
  /// Returns the bytes read, those between the columns included where they were read too.
  uint64_t read_tile(const Tile& tile, uint8_t* buffer) const;

  /// Throws source_changed where a file, or what its path names now, is not the plan's any more.
  void check_unchanged() const;

 private:
  uint64_t read_rows(const Slice& slice, uint64_t first_row, uint64_t rows, const Tile& tile, uint8_t* to) const;
  uint64_t read_full_rows(const Slice& slice, uint64_t offset, uint64_t rows, uint64_t row_bytes, uint8_t* to) const;
  void read_exactly(uint64_t file, uint64_t offset, uint64_t bytes, uint8_t* to) const;
  void open_file(uint64_t file);
  void close_all();

  const LayerProgram& program_;
  std::vector<int> descriptors_;  // -1: no slice names the file
};

}  // namespace layercast
