// What CUDA gives and takes back, as values: memory of the device, pinned memory of the host, streams, events.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace layercast {

/// A CUDA call that frees, as a deleter. What it returns says nothing that could still be acted upon.
template <auto kFree>
struct FreeWith {
  template <class T>
  void operator()(T* at) const {
    kFree(at);
  }
};

using Stream = std::unique_ptr<std::remove_pointer_t<cudaStream_t>, FreeWith<cudaStreamDestroy>>;
using Event = std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, FreeWith<cudaEventDestroy>>;
using DeviceMemory = std::unique_ptr<uint8_t, FreeWith<cudaFree>>;

Stream make_stream();

/// Waiting for it lets the thread sleep: cores are for those who read files.
Event make_sleepy_event();

/// Throws out_of_memory, saying how much was asked for and how much is free.
DeviceMemory allocate_device(uint64_t bytes);

/// Pinned memory of the host that kernels reach at the same address; counted in `pinned_bytes` as long as it is there.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  PinnedMemory(uint64_t bytes, std::atomic<uint64_t>& pinned_bytes);
  ~PinnedMemory();
  PinnedMemory(PinnedMemory&& other) noexcept { swap(other); }
  PinnedMemory& operator=(PinnedMemory&& other) noexcept {
    swap(other);
    return *this;
  }

  uint8_t* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }

 private:
  void swap(PinnedMemory& other) noexcept;

  uint8_t* data_ = nullptr;
  uint64_t bytes_ = 0;
  std::atomic<uint64_t>* pinned_bytes_ = nullptr;
};

}  // namespace layercast
