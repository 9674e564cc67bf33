// What backend.h calls a Device, here: a GPU, its lanes, and what this process has of its memory and pinned for it.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

#include "../backend.h"
#include "memory.h"

namespace layercast {

/// One in flight while the next tile is read: with all lanes at work the bus is never without a copy.
inline constexpr uint32_t kSlotsPerLane = 2;

/// Large enough for copies near the bus's speed, small enough that all lanes' slots together are no burden and that threads
/// find what they have just read in their caches.
inline constexpr uint64_t kTileBytes = 4 << 20;

/// What is fetched passes through no thread, and few lanes do it: copies as large as the bus likes best.
inline constexpr uint64_t kFetchedTileBytes = 16 << 20;

/// What a run's findings fit into, and is kept for the next: to free memory would wait for all that is queued.
inline constexpr uint64_t kSpareBytes = 64 << 10;

/// Where one tile is on its way: pinned memory that it is read into (unless it is fetched), memory of the device that
/// it is copied to, and events around the kernel that works on it.
struct Slot {
  PinnedMemory host;
  DeviceMemory tile;
  uint64_t tile_bytes = 0;
  Event kernel_begin;
  Event kernel_end;
  std::atomic<uint64_t>* kernel_ns = nullptr;  // where the time between the events is still to be added
};

/// A thread's own: made when the thread first needs it.
struct Lane {
  Stream stream;
  std::array<Slot, kSlotsPerLane> slots;
  uint32_t slot = 0;
  DeviceMemory digest;
  std::mutex times;  // of the slots' kernel_ns and events, which a run that ends looks at from another thread
};

struct Half {
  HalfKind kind;
  PinnedMemory host;
  DeviceMemory own;
};

struct Device {
  Device(int ordinal, uint32_t lanes);

  const int ordinal;
  uint32_t multiprocessors;
  std::atomic<uint64_t> pinned_bytes = 0;
  Stream control;  // for what belongs to no lane
  std::vector<Lane> lanes;

  std::mutex mutex;  // of what follows
  std::vector<DeviceMemory> spare;  // of kSpareBytes each, for runs to come
  std::map<const uint8_t*, Half> halves;
  std::map<const uint8_t*, uint64_t> pins;
};

/// CUDA calls of this thread are for this device from now on; throws where there is no such device.
void use_device(int ordinal);

/// A thread's stream, made when it is first asked for.
cudaStream_t stream_of(Lane& lane);

/// Turns the lane to its next slot once the tile before has left it, with room for `bytes`.
Slot& next_slot(Lane& lane, uint64_t bytes);

/// The slot's pinned memory, at least `bytes` of it.
uint8_t* host_of(Device& device, Slot& slot, uint64_t bytes);

/// Adds the time of the slot's last kernel, which has ended, to where it belongs. The lane's times are locked.
void settle(Slot& slot);

}  // namespace layercast
