// A rank's standing memory: the live half (a mapped safetensors file) and the staging half. What the halves hold, where
// and in which type, only the programs know.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "backend.h"
#include "thread_pool.h"

namespace layercast {

enum class Half { live, staging };
enum class OpenMode { create, attach };

struct ArenaOptions {
  std::string path;
  OpenMode mode;
  /// The live file's first bytes; a multiple of 4096, so that the tensor bytes begin on a page.
  std::span<const uint8_t> header;
  uint64_t data_bytes;
};

class Arena {
 public:
  /// create: a new file that takes the path's place only once it is whole; attach: the file must be this arena's.
  Arena(const Backend& backend, uint32_t lanes, const ArenaOptions& options);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  /// Throws while work is in flight.
  void open_staging(ThreadPool& pool, bool poison);
  void close_staging();
  void close();

  /// Throws invalid_argument for a half that is not there.
  uint8_t* base(Half half) const;
  uint64_t data_bytes() const { return data_bytes_; }
  const Backend& backend() const { return backend_; }
  Device* device() const { return device_; }
  /// Throws what a status that is not ok means.
  void check(Status status, uint64_t bytes = 0) const;
  /// Throws invalid_argument for a range outside of the tensor bytes.
  void check_spans(std::span<const Span> spans) const;

 private:
  friend class ArenaUse;

  void create_live(const ArenaOptions& options);
  void attach_live(const ArenaOptions& options);
  void map_live(int fd, const ArenaOptions& options);
  void check_idle(const char* what) const;
  void release();

  const Backend& backend_;
  const uint64_t data_bytes_;
  Device* device_ = nullptr;
  uint8_t* live_ = nullptr;
  uint8_t* staging_ = nullptr;
  std::atomic<uint64_t> in_flight_ = 0;
};

/// Work in flight on an arena, from before it is queued until its last write is done.
class ArenaUse {
 public:
  explicit ArenaUse(std::shared_ptr<Arena> arena) : arena_(std::move(arena)) { arena_->in_flight_++; }
  ~ArenaUse() { arena_->in_flight_--; }
  ArenaUse(const ArenaUse&) = delete;
  ArenaUse& operator=(const ArenaUse&) = delete;

  Arena& arena() const { return *arena_; }

 private:
  std::shared_ptr<Arena> arena_;
};

/// Parts of spans that are worth a thread's turn.
std::vector<Span> cut_spans(std::span<const Span> spans);

}  // namespace layercast
