// How long something took: each lap is the time since the birth or the last lap.
#pragma once

#include <chrono>
#include <cstdint>

namespace layercast {

class Stopwatch {
 public:
  uint64_t lap_ns() {
    const auto now = std::chrono::steady_clock::now();
    const auto elapsed = std::chrono::duration_cast<std::chrono::nanoseconds>(now - last_);
    last_ = now;
    return static_cast<uint64_t>(elapsed.count());
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

inline double ms_from_ns(uint64_t ns) { return static_cast<double>(ns) / 1e6; }

}  // namespace layercast
