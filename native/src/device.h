// A device that has been opened: a backend's table, its handle, and what its calls come back as. Arenas share one.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backend.h"
#include "pinned_sources.h"
#include "thread_pool.h"

namespace layercast {

/// Lanes that belong to no thread: who lets the device fetch a whole layer borrows one for it. They are few, for what a
/// lane has of the device's memory stays with it.
class FetchLanes {
 public:
  FetchLanes(uint32_t first, uint32_t count);

  /// Waits for one that is free. Throws cancelled.
  uint32_t take(const CancelToken& cancel);
  void give_back(uint32_t lane);

 private:
  std::mutex mutex_;
  std::condition_variable given_back_;
  std::vector<uint32_t> free_;
};

/// A lane of the device's own as long as it is there.
class BorrowedLane {
 public:
  BorrowedLane(FetchLanes& lanes, const CancelToken& cancel) : lanes_(lanes), number_(lanes.take(cancel)) {}
  ~BorrowedLane() { lanes_.give_back(number_); }
  BorrowedLane(const BorrowedLane&) = delete;
  BorrowedLane& operator=(const BorrowedLane&) = delete;

  uint32_t number() const { return number_; }

 private:
  FetchLanes& lanes_;
  const uint32_t number_;
};

class OpenDevice {
 public:
  /// `lanes`: threads that may call the backend at one time. Throws no_device where there is no such ordinal.
  OpenDevice(const Backend& backend, int ordinal, uint32_t lanes);
  ~OpenDevice();
  OpenDevice(const OpenDevice&) = delete;
  OpenDevice& operator=(const OpenDevice&) = delete;

  const Backend& backend() const { return backend_; }
  Device* handle() const { return handle_; }
  bool is_cpu() const;
  PinnedSources& pinned_sources() { return *pinned_sources_; }
  FetchLanes& fetch_lanes() { return fetch_lanes_; }
  DeviceFacts facts() const;

  /// Throws what a status that is not ok means. Where memory ran out: `bytes` were asked for, of a half's kind.
  void check(Status status, uint64_t bytes = 0, HalfKind kind = HalfKind::own) const;

 private:
  [[noreturn]] void throw_no_device() const;
  [[noreturn]] void throw_out_of_memory(uint64_t bytes, HalfKind kind) const;

  const Backend& backend_;
  const int ordinal_;
  FetchLanes fetch_lanes_;
  Device* handle_ = nullptr;
  std::unique_ptr<PinnedSources> pinned_sources_;
};

/// Opens "cpu", "cuda:N", or "cuda", which is cuda:0. Throws no_device, saying why, where it cannot.
std::shared_ptr<OpenDevice> open_device(const std::string& name, uint32_t lanes);

}  // namespace layercast
