// Checkpoint files as the plan saw them, and bytes out of them. Files are read, not touched through a mapping: one that is
// cut short meanwhile is an error, not a signal. What is pinned the device reads by itself.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "backend.h"
#include "dequantize.h"
#include "layer_program.h"
#include "pinned_sources.h"

namespace layercast {

class SourceFiles {
 public:
  /// Opens the files that slices and scales name; throws source_not_found or source_changed.
  SourceFiles(const LayerProgram& program, const PinnedSources& pinned);
  ~SourceFiles();
  SourceFiles(const SourceFiles&) = delete;
  SourceFiles& operator=(const SourceFiles&) = delete;

  /// Fills `buffer` with the tile's elements in the op's source dtype, rows packed; rows without a slice become the op's
  /// constant, or zero. Returns the bytes read, those between the columns included where they were read too.
  uint64_t read_tile(const Tile& tile, uint8_t* buffer) const;

  /// Whether the device can read by itself wherever a slice begins, and as it lies: so most likely all of them.
  bool seem_pinned() const;

  /// The tile's rows where the device can read all of them by itself; else none, and so where they are not to be copied
  /// as they lie.
  std::vector<HostRows> pinned_rows(const Tile& tile) const;

  /// The value of a slice of one element.
  float read_value(uint64_t slice) const;

  /// Throws source_changed where a file, or what its path names now, is not the plan's any more.
  void check_unchanged() const;

 private:
  /// What is read of a file: rows (or, of a transposed slice, columns) `stride` bytes apart.
  struct Rows {
    uint64_t file;
    uint64_t offset;
    uint64_t stride;
    uint64_t count;
    uint64_t bytes;  // of one
  };

  uint64_t read_part(const Slice& slice, const Part& part, DType dtype, uint8_t* to) const;
  uint64_t read_elements(const Slice& slice, const Part& part, uint8_t* to) const;
  uint64_t read_transposed(const Slice& slice, const Part& part, uint8_t* to) const;
  uint64_t read_rows(const Rows& rows, uint8_t* to) const;
  uint64_t read_full_rows(const Rows& rows, uint8_t* to) const;
  void read_exactly(uint64_t file, uint64_t offset, uint64_t bytes, uint8_t* to) const;
  void open_file(uint64_t file, const PinnedSources& pinned);
  void close_all();

  const LayerProgram& program_;
  std::vector<int> descriptors_;  // -1: nothing names the file
  std::vector<std::shared_ptr<const PinnedFile>> pinned_;
};

}  // namespace layercast
