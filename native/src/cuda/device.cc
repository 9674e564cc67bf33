#include "device.h"

#include <algorithm>
#include <string>

#include "failure.h"

namespace layercast {
namespace {

void check_ordinal(int ordinal) {
  int count = 0;
  check(cudaGetDeviceCount(&count), "counting devices");
  if (ordinal >= 0 && ordinal < count) return;
  throw Failure{Status::failed, "there is no CUDA device " + std::to_string(ordinal) + ": this host has " +
                                    std::to_string(count)};
}

}  // namespace

void use_device(int ordinal) {
  static thread_local int used = -1;
  if (ordinal == used) return;
  check_ordinal(ordinal);
  check(cudaSetDevice(ordinal), "choosing the device");
  used = ordinal;
}

Device::Device(int ordinal, uint32_t lanes) : ordinal(ordinal), lanes(lanes) {
  use_device(ordinal);
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, ordinal), "looking at the device");
  multiprocessors = static_cast<uint32_t>(count);
  control = make_stream();
}

cudaStream_t stream_of(Lane& lane) {
  if (lane.stream == nullptr) lane.stream = make_stream();
  return lane.stream.get();
}

Slot& next_slot(Lane& lane, uint64_t bytes) {
  stream_of(lane);
  lane.slot = (lane.slot + 1) % kSlotsPerLane;
  Slot& slot = lane.slots[lane.slot];
  if (slot.kernel_end == nullptr) {
    slot.kernel_begin = make_sleepy_event();
    slot.kernel_end = make_sleepy_event();
  }
  check(cudaEventSynchronize(slot.kernel_end.get()), "waiting for a tile");
  {
    const std::lock_guard lock(lane.times);
    settle(slot);
  }
  if (slot.tile_bytes < bytes) {
    slot.tile_bytes = 0;
    slot.tile.reset();
    slot.tile = allocate_device(std::max(bytes, kTileBytes));
    slot.tile_bytes = std::max(bytes, kTileBytes);
  }
  return slot;
}

uint8_t* host_of(Device& device, Slot& slot, uint64_t bytes) {
  if (slot.host.bytes() < bytes) {
    slot.host = PinnedMemory();
    slot.host = PinnedMemory(std::max(bytes, kTileBytes), device.pinned_bytes);
  }
  return slot.host.data();
}

void settle(Slot& slot) {
  if (slot.kernel_ns == nullptr) return;
  float ms = 0;
  check(cudaEventElapsedTime(&ms, slot.kernel_begin.get(), slot.kernel_end.get()), "timing a kernel");
  slot.kernel_ns->fetch_add(static_cast<uint64_t>(static_cast<double>(ms) * 1e6));
  slot.kernel_ns = nullptr;
}

}  // namespace layercast
