// Scheme none: values as they are, or rounded to another dtype.
#include "schemes.h"

namespace layercast {
namespace {

bool keeps_bits(const OpSpec& spec) {
  return spec.source == spec.op.out_dtype && (spec.round == DType::none || spec.round == spec.source);
}

Scratch scratch(const TileWork& work) {
  return {.values = kStripElements, .codes = kStripElements * dtype_bytes(work.spec.op.out_dtype)};
}

void put(TileWork& work) {
  const uint64_t element_bytes = dtype_bytes(work.spec.op.out_dtype);
  const bool bits_kept = keeps_bits(work.spec);
  each_strip(work.tile, [&](uint64_t first, uint64_t count) {
    const uint8_t* bytes = work.host + first * element_bytes;
    if (bits_kept) {
      inspect(work, first, count);
    } else {
      place(work, first, count, work.lane.values.data());
      // The values have been rounded: this loses nothing.
      work.vectors.narrow(work.spec.op.out_dtype, work.lane.values.data(), count, work.lane.codes.data());
      bytes = work.lane.codes.data();
    }
    work.totals.place_ns += work.watch.lap_ns();
    write_elements(work, first, count, bytes);
    work.totals.write_ns += work.watch.lap_ns();
  });
}

}  // namespace

const SchemeCode kNone = {scratch, nullptr, put};

}  // namespace layercast
