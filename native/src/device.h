// A device that has been opened: a backend's table, its handle, and what its calls come back as. Arenas share one.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "backend.h"
#include "pinned_sources.h"

namespace layercast {

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
  DeviceFacts facts() const;

  /// Throws what a status that is not ok means. Where memory ran out: `bytes` were asked for, of a half's kind.
  void check(Status status, uint64_t bytes = 0, HalfKind kind = HalfKind::own) const;

 private:
  [[noreturn]] void throw_no_device() const;
  [[noreturn]] void throw_out_of_memory(uint64_t bytes, HalfKind kind) const;

  const Backend& backend_;
  const int ordinal_;
  Device* handle_ = nullptr;
  std::unique_ptr<PinnedSources> pinned_sources_;
};

/// Opens "cpu", "cuda:N", or "cuda", which is cuda:0. Throws no_device, saying why, where it cannot.
std::shared_ptr<OpenDevice> open_device(const std::string& name, uint32_t lanes);

}  // namespace layercast
