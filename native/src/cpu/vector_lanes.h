// What the loops for vectors of any width share: how they walk over memory. In all files of these loops, `L` is what a
// file for one instruction set brings, types of vectors and the operations on them; they are included by such files
// alone, which are compiled for more than the machine may have. So nothing in them, and nothing they call, may be a
// function that the linker could share with other files.
#pragma once

#include <cstdint>
#include <cstring>

namespace layercast {
namespace {

constexpr uint32_t kMagnitudeMask = 0x7FFFFFFFu;

// The walks are always inlined, so that what a step refers to stays in registers.

/// Calls step(from) for each vector. What is left at the end comes in one filled up with zeros.
template <class L, class Step>
[[gnu::always_inline]] inline void each_vector(const uint8_t* from, uint64_t bytes, const Step& step) {
  uint64_t done = 0;
  for (; done + L::kBytes <= bytes; done += L::kBytes) step(L::load(from + done));
  if (done == bytes) return;
  alignas(64) uint8_t last[L::kBytes] = {};
  std::memcpy(last, from + done, bytes - done);
  step(L::load(last));
}

/// Calls step(from, to) for each kLanes elements, the last ones likewise.
template <uint64_t kLanes, uint64_t kFromBytes, uint64_t kToBytes, class Step>
[[gnu::always_inline]] inline void map_lanes(const uint8_t* from, uint64_t count, uint8_t* to, const Step& step) {
  uint64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) step(from + i * kFromBytes, to + i * kToBytes);
  if (i == count) return;
  alignas(64) uint8_t last_from[kLanes * kFromBytes] = {};
  alignas(64) uint8_t last_to[kLanes * kToBytes];
  std::memcpy(last_from, from + i * kFromBytes, (count - i) * kFromBytes);
  step(last_from, last_to);
  std::memcpy(to + i * kToBytes, last_to, (count - i) * kToBytes);
}

template <class Lane, class L>
Lane greatest_lane(typename L::Ints vector) {
  Lane lanes[L::kBytes / sizeof(Lane)];
  std::memcpy(lanes, &vector, sizeof lanes);
  Lane greatest = 0;
  for (const Lane lane : lanes) greatest = lane > greatest ? lane : greatest;
  return greatest;
}

template <class L>
uint64_t sum_of_lanes64(typename L::Ints vector) {
  uint64_t lanes[L::kBytes / sizeof(uint64_t)];
  std::memcpy(lanes, &vector, sizeof lanes);
  uint64_t sum = 0;
  for (const uint64_t lane : lanes) sum += lane;
  return sum;
}

}  // namespace
}  // namespace layercast
