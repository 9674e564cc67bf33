// The element types by number (the codes of DTYPES in orchestrator/contract/dtype.ts).
#pragma once

#include <cstdint>

namespace layercast {

enum class DType : int32_t { none = -1, bf16 = 0, f16 = 1, f32 = 2, f8_e4m3 = 3, u8 = 4, f8_e8m0 = 5 };

inline constexpr uint64_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::bf16:
    case DType::f16:
      return 2;
    case DType::f32:
      return 4;
    case DType::f8_e4m3:
    case DType::u8:
    case DType::f8_e8m0:
      return 1;
    case DType::none:
      break;
  }
  return 0;
}

/// The types of values in a checkpoint, and those that values are rounded to.
inline constexpr bool is_source_dtype(DType dtype) {
  return dtype == DType::bf16 || dtype == DType::f16 || dtype == DType::f32;
}

/// The types of scales in a checkpoint. E8M0, an exponent alone, becomes F32 while it is read: no backend sees it.
inline constexpr bool is_scale_dtype(DType dtype) { return is_source_dtype(dtype) || dtype == DType::f8_e8m0; }

}  // namespace layercast
