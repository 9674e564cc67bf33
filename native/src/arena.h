// A rank's standing memory: the live half (on the CPU a mapped safetensors file, on CUDA memory that a holder holds and
// a file of its header) and the staging half. What the halves hold, where and in which type, only the programs know.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "device.h"
#include "thread_pool.h"

namespace layercast {

enum class Half { live, staging };
enum class OpenMode { create, attach };
/// Of staging: memory of the device, or pinned memory of the host. On the CPU they are the same.
enum class Where { device, host };

struct ArenaOptions {
  std::string path;
  OpenMode mode;
  /// The live file's first bytes; a multiple of 4096, so that the tensor bytes begin on a page.
  std::span<const uint8_t> header;
  uint64_t data_bytes;
  /// kIpcHandleBytes of the memory that is the live half, where the file is its header alone; empty on the CPU.
  std::span<const uint8_t> ipc_handle = {};
};

class Arena {
 public:
  /// create: a new file that takes the path's place only once it is whole; attach: the file must be this arena's.
  Arena(std::shared_ptr<OpenDevice> device, const ArenaOptions& options);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  /// Throws while work is in flight. Staging that is open is kept; elsewhere than asked it is closed first.
  void open_staging(ThreadPool& pool, Where where, bool poison);
  void close_staging();
  void close();

  /// Throws invalid_argument for a half that is not there.
  uint8_t* base(Half half) const;
  uint64_t data_bytes() const { return data_bytes_; }
  const Backend& backend() const { return device_->backend(); }
  Device* device() const { return device_->handle(); }
  const PinnedSources& pinned_sources() const { return device_->pinned_sources(); }
  FetchLanes& fetch_lanes() const { return device_->fetch_lanes(); }
  void check(Status status) const { device_->check(status); }
  /// Throws invalid_argument for a range outside of the tensor bytes.
  void check_spans(std::span<const Span> spans) const;

 private:
  friend class ArenaUse;

  void create_live(const ArenaOptions& options);
  void attach_live(const ArenaOptions& options);
  void open_live(int fd, const ArenaOptions& options);
  uint8_t* open_half(const HalfSpec& spec) const;
  void close_half(uint8_t*& base) const;
  void check_idle(const char* what) const;

  const std::shared_ptr<OpenDevice> device_;
  const uint64_t data_bytes_;
  uint8_t* live_ = nullptr;
  uint8_t* staging_ = nullptr;
  HalfKind staging_kind_ = HalfKind::own;
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

/// Spans in parts of at most `part_bytes`, each for a thread's turn; 0: as they are.
std::vector<Span> cut_spans(std::span<const Span> spans, uint64_t part_bytes);

}  // namespace layercast
