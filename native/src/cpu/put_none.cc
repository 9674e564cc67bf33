// Scheme none: values as they are, or rounded to another dtype.
#include <cstring>

#include "numbers.h"
#include "run.h"

namespace layercast {
namespace {

template <class T, class Convert>
void store(const float* values, uint64_t count, uint8_t* to, const Convert& convert) {
  for (uint64_t i = 0; i < count; i++) {
    const T value = convert(values[i]);
    std::memcpy(to + i * sizeof value, &value, sizeof value);
  }
}

float quiet(float value) {
  const uint32_t quiet_nan = (bits_of(value) & ~kAbsMask) | 0x7FC00000u;
  return abs_bits(value) > kInfinityBits ? float_of(quiet_nan) : value;
}

/// The values have been rounded: this loses nothing.
void store_as(DType out, const float* values, uint64_t count, uint8_t* to) {
  if (out == DType::bf16) return store<uint16_t>(values, count, to, bf16_from_float);
  if (out == DType::f16) return store<uint16_t>(values, count, to, f16_from_float);
  store<float>(values, count, to, quiet);
}

bool keeps_bits(const OpSpec& spec) {
  return spec.source == spec.op.out_dtype && (spec.round == DType::none || spec.round == spec.source);
}

}  // namespace

void put_none(TileWork& work) {
  const uint64_t element_bytes = dtype_bytes(work.spec.op.out_dtype);
  const bool bits_kept = keeps_bits(work.spec);
  work.lane.values.resize(std::max<uint64_t>(work.lane.values.size(), kStripElements));
  work.lane.codes.resize(std::max<uint64_t>(work.lane.codes.size(), kStripElements * element_bytes));
  each_strip(work.tile, [&](uint64_t first, uint64_t count) {
    const uint8_t* bytes = work.host + first * element_bytes;
    if (bits_kept) {
      inspect(work, first, count);
    } else {
      place(work, first, count, work.lane.values.data());
      store_as(work.spec.op.out_dtype, work.lane.values.data(), count, work.lane.codes.data());
      bytes = work.lane.codes.data();
    }
    work.totals.place_ns += work.watch.lap_ns();
    write_elements(work, first, count, bytes);
    work.totals.write_ns += work.watch.lap_ns();
  });
}

}  // namespace layercast
