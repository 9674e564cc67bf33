// F32 values -> E4M3 codes, with one factor or divisor for all of them.
#include "numbers.h"
#include "run.h"
#include "vector_code.h"

namespace layercast {

LAYERCAST_VECTOR_CODE void encode_multiplied(const float* values, uint64_t count, float factor, uint8_t* codes) {
  for (uint64_t i = 0; i < count; i++) codes[i] = e4m3_from_scaled(values[i] * factor, bits_of(values[i]));
}

LAYERCAST_VECTOR_CODE void encode_divided(const float* values, uint64_t count, float divisor, uint8_t* codes) {
  for (uint64_t i = 0; i < count; i++) codes[i] = e4m3_from_scaled(values[i] / divisor, bits_of(values[i]));
}

}  // namespace layercast
