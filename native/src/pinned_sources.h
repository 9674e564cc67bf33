// Checkpoint files that the device reads by itself: mapped and pinned once, and kept from reload to reload, for a trainer that
// rewrites the same files. Pinned pages stay what they were when a file is cut and written again, while the file has others
// by then; so each range is looked at before it is used, and what is not the file's any more is read like any other.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "backend.h"
#include "layer_program.h"

namespace layercast {

class PinnedFile {
 public:
  /// Maps and pins the file; throws out_of_memory or io.
  PinnedFile(const Backend& backend, Device* device, const ProgramFile& file);
  ~PinnedFile();
  PinnedFile(const PinnedFile&) = delete;
  PinnedFile& operator=(const PinnedFile&) = delete;

  const uint8_t* bytes() const { return bytes_; }
  uint64_t size_bytes() const { return size_bytes_; }
  bool is(const struct stat& status) const;
  /// Whether the device still sees the file's own pages there. False too where this system does not tell.
  bool is_current(uint64_t offset, uint64_t bytes) const;

 private:
  const Backend& backend_;
  Device* const device_;
  const uint64_t size_bytes_;
  const uint8_t* bytes_ = nullptr;
  dev_t device_id_ = 0;
  ino_t inode_ = 0;
};

class PinnedSources {
 public:
  PinnedSources(const Backend& backend, Device* device) : backend_(backend), device_(device) {}

  /// These files are pinned from now on, as many of them as `limit_bytes` allow, and no others; one whose pages are not the
  /// file's any more is pinned again. Returns the bytes that are pinned. What is in use is given up by its last user.
  uint64_t keep(std::span<const ProgramFile> files, uint64_t limit_bytes);

  /// Null: not pinned.
  std::shared_ptr<const PinnedFile> find(const struct stat& status) const;

 private:
  std::shared_ptr<const PinnedFile> current(const ProgramFile& file) const;

  const Backend& backend_;
  Device* const device_;
  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<const PinnedFile>> files_;
};

}  // namespace layercast
