// fp8-tensor: one scale for the whole matrix, so two passes over the source: amax first, then codes.
#include "numbers.h"
#include "schemes.h"

namespace layercast {
namespace {

void raise(std::atomic<uint32_t>& highest, uint32_t value) {
  uint32_t seen = highest.load(std::memory_order_relaxed);
  while (value > seen && !highest.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
  }
}

Scratch scratch(const TileWork&) { return {.values = kStripElements, .codes = kStripElements}; }

void measure(TileWork& work) {
  uint32_t amax_bits = 0;
  each_strip(work.tile, [&](uint64_t first, uint64_t count) {
    amax_bits = std::max(amax_bits, place_rows(work, first, 1, count, work.lane.values.data()).amax_bits);
  });
  raise(work.state.amax_bits, amax_bits);
  work.totals.place_ns += work.watch.lap_ns();
}

void put(TileWork& work) {
  const float scale = tensor_scale(work.state.amax_bits.load(std::memory_order_relaxed));
  if (work.tile.first_row == 0 && work.tile.first_col == 0) write_scales(work, 0, &scale, 1);
  each_strip(work.tile, [&](uint64_t first, uint64_t count) {
    const Placed strip = place_rows(work, first, 1, count, work.lane.values.data());
    work.totals.place_ns += work.watch.lap_ns();
    work.vectors.encode(strip.elements, {Scaling::By::factor, 1.0f / scale}, work.lane.codes.data(), count);
    work.totals.quantize_ns += work.watch.lap_ns();
    write_elements(work, first, count, work.lane.codes.data());
    work.totals.write_ns += work.watch.lap_ns();
  });
}

}  // namespace

const SchemeCode kFp8Tensor = {scratch, measure, put};

}  // namespace layercast
