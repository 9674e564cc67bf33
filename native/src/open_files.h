// Files as a plan saw them, and bytes out of them. Files are read, not touched through a mapping: one that is cut short
// meanwhile is an error, not a signal.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <span>
#include <vector>

#include "layer_program.h"

namespace layercast {

inline int64_t mtime_ns(const struct stat& status) {
  return static_cast<int64_t>(status.st_mtim.tv_sec) * 1'000'000'000 + status.st_mtim.tv_nsec;
}

/// Rows of a file, `stride` bytes apart.
struct FileRows {
  uint64_t file;
  uint64_t offset;
  uint64_t stride;
  uint64_t count;
  uint64_t bytes;  // of one
};

class OpenFiles {
 public:
  /// None is open yet.
  explicit OpenFiles(std::span<const ProgramFile> files);
  ~OpenFiles();
  OpenFiles(const OpenFiles&) = delete;
  OpenFiles& operator=(const OpenFiles&) = delete;

  bool is_open(uint64_t file) const { return descriptors_[file] != -1; }

  /// One that is not open yet; throws source_not_found or source_changed.
  struct stat open(uint64_t file);

  /// Rows are packed. Returns the bytes read, those between the rows included where they were read too.
  uint64_t read_rows(const FileRows& rows, uint8_t* to) const;
  void read_exactly(uint64_t file, uint64_t offset, uint64_t bytes, uint8_t* to) const;

  /// Throws source_changed where a file, or what its path names now, is not the plan's any more.
  void check_unchanged() const;

 private:
  uint64_t read_full_rows(const FileRows& rows, uint8_t* to) const;

  const std::span<const ProgramFile> files_;
  std::vector<int> descriptors_;  // -1: not open
};

}  // namespace layercast
