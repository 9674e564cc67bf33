// What backend.h calls a Run, here: a layer's ops, and what the kernels of its tiles find, which stays in device memory
// until finish.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "../backend.h"
#include "device.h"
#include "kernels.h"

namespace layercast {

struct Run {
  Run(Device& device, const RunSpec& spec);
  /// Waits for what is still queued: the tiles' sources and the half may go away afterwards.
  ~Run();

  Device& device;
  const std::vector<OpSpec> ops;
  uint8_t* const base;
  DeviceMemory states;        // an OpState an op, then kDigestParts numbers
  uint64_t state_bytes;
  std::vector<uint8_t> used;  // by lane: whether it has queued anything for this run that nobody has waited for
  std::atomic<uint64_t> bytes_written = 0;
  std::atomic<uint64_t> kernel_ns = 0;
};

uint8_t* buffer(Run& run, uint32_t lane, uint64_t bytes);
void fetch(Run& run, uint32_t lane, const Tile& tile, const HostRows* rows, uint64_t count);
void measure(Run& run, uint32_t lane, const Tile& tile, const uint8_t* host);
void put(Run& run, uint32_t lane, const Tile& tile, const uint8_t* host);
void derive(Run& run, uint32_t lane, const Derived& derived, uint64_t head);
void finish(Run& run, BadElements* bad, RunTotals& totals);

}  // namespace layercast
