#include "memory.h"

#include <string>
#include <utility>

#include "failure.h"

namespace layercast {

Stream make_stream() {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
  return Stream(stream);
}

Event make_sleepy_event() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventBlockingSync), "making an event");
  return Event(event);
}

DeviceMemory allocate_device(uint64_t bytes) {
  void* at = nullptr;
  const cudaError_t error = cudaMalloc(&at, bytes);
  size_t free_bytes = 0, total_bytes = 0;
  if (error == cudaErrorMemoryAllocation && cudaMemGetInfo(&free_bytes, &total_bytes) == cudaSuccess) {
    cudaGetLastError();
    throw Failure{Status::out_of_memory, "the CUDA device has no room for " + std::to_string(bytes) + " bytes: " +
                                             std::to_string(free_bytes) + " of " + std::to_string(total_bytes) +
                                             " are free"};
  }
  check(error, "allocating memory");
  return DeviceMemory(static_cast<uint8_t*>(at));
}

PinnedMemory::PinnedMemory(uint64_t bytes, std::atomic<uint64_t>& pinned_bytes) {
  void* at = nullptr;
  const cudaError_t error = cudaHostAlloc(&at, bytes, cudaHostAllocMapped | cudaHostAllocPortable);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw Failure{Status::out_of_memory, "the host did not give " + std::to_string(bytes) +
                                             " bytes of pinned memory: free some, or raise the limit on locked memory"};
  }
  check(error, "pinning memory of the host");
  data_ = static_cast<uint8_t*>(at);
  bytes_ = bytes;
  pinned_bytes_ = &pinned_bytes;
  pinned_bytes += bytes;
}

PinnedMemory::~PinnedMemory() {
  if (data_ == nullptr) return;
  cudaFreeHost(data_);
  *pinned_bytes_ -= bytes_;
}

void PinnedMemory::swap(PinnedMemory& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(pinned_bytes_, other.pinned_bytes_);
}

}  // namespace layercast
