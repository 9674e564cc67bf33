// Vectors of 64 bytes. Compiled for AVX-512 F, BW, DQ and VL: call nothing here before asking whether the machine has
// them.
#include <immintrin.h>

#include "vector_loops.h"

namespace layercast {
namespace {

struct Avx512 {
  static constexpr uint64_t kBytes = 64;
  using Ints = __m512i;
  using Floats = __m512;
  using Halves = __m256i;

  static Ints load(const void* at) { return _mm512_loadu_si512(at); }
  static void store(void* at, Ints a) { _mm512_storeu_si512(at, a); }
  static void stream(void* at, Ints a) { _mm512_stream_si512(static_cast<__m512i*>(at), a); }
  static void fence() { _mm_sfence(); }
  static Ints as_ints(Floats a) { return _mm512_castps_si512(a); }
  static Floats as_floats(Ints a) { return _mm512_castsi512_ps(a); }

  static Ints set8(uint8_t value) { return _mm512_set1_epi8(static_cast<char>(value)); }
  static Ints set16(uint16_t value) { return _mm512_set1_epi16(static_cast<short>(value)); }
  static Ints set32(uint32_t value) { return _mm512_set1_epi32(static_cast<int>(value)); }
  static Floats set_float(float value) { return _mm512_set1_ps(value); }
  static Ints repeat16(const uint8_t* bytes) {
    return _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
  }

  static Ints bit_and(Ints a, Ints b) { return _mm512_and_si512(a, b); }
  static Ints bit_or(Ints a, Ints b) { return _mm512_or_si512(a, b); }
  template <unsigned kBits>
  static Ints right16(Ints a) { return _mm512_srli_epi16(a, kBits); }
  template <unsigned kBits>
  static Ints left16(Ints a) { return _mm512_slli_epi16(a, kBits); }
  template <unsigned kBits>
  static Ints left32(Ints a) { return _mm512_slli_epi32(a, kBits); }
  template <unsigned kBits>
  static Ints right32(Ints a) { return _mm512_srli_epi32(a, kBits); }
  template <unsigned kBits>
  static Ints right64(Ints a) { return _mm512_srli_epi64(a, kBits); }
  template <unsigned kBits>
  static Ints left64(Ints a) { return _mm512_slli_epi64(a, kBits); }

  static Ints add8(Ints a, Ints b) { return _mm512_add_epi8(a, b); }
  static Ints add8_saturated(Ints a, Ints b) { return _mm512_adds_epu8(a, b); }
  static Ints sub8_saturated(Ints a, Ints b) { return _mm512_subs_epu8(a, b); }
  static Ints max8(Ints a, Ints b) { return _mm512_max_epu8(a, b); }
  static Ints min8(Ints a, Ints b) { return _mm512_min_epu8(a, b); }
  /// sum + (a > b)
  static Ints add8_if_greater(Ints sum, Ints a, Ints b) {
    return _mm512_mask_add_epi8(sum, _mm512_cmpgt_epu8_mask(a, b), sum, set8(1));
  }
  static bool any8_less(Ints a, Ints b) { return _mm512_cmplt_epu8_mask(a, b) != 0; }
  /// `c` where a < b, else `d`.
  static Ints select8_less(Ints a, Ints b, Ints c, Ints d) {
    return _mm512_mask_blend_epi8(_mm512_cmplt_epu8_mask(a, b), d, c);
  }
  /// Of each 8 bytes, in 64 bits.
  static Ints sums_of_8(Ints a) { return _mm512_sad_epu8(a, _mm512_setzero_si512()); }
  /// In each 16 bytes, the table's bytes that the indices, less than 16, name.
  static Ints look_up(Ints table, Ints indices) { return _mm512_shuffle_epi8(table, indices); }

  /// sum + (a > b)
  static Ints add16_if_greater(Ints sum, Ints a, Ints b) {
    return _mm512_mask_add_epi16(sum, _mm512_cmpgt_epu16_mask(a, b), sum, set16(1));
  }
  static Ints max16(Ints a, Ints b) { return _mm512_max_epi16(a, b); }
  static Ints add32(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  static Ints sub32(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
  static Ints min32(Ints a, Ints b) { return _mm512_min_epi32(a, b); }
  static Ints max32(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
  /// `c` where a < b, signed, else `d`.
  static Ints select32_less(Ints a, Ints b, Ints c, Ints d) {
    return _mm512_mask_blend_epi32(_mm512_cmplt_epi32_mask(a, b), d, c);
  }
  static Ints add64(Ints a, Ints b) { return _mm512_add_epi64(a, b); }
  /// Of the lower 32 bits of each 64.
  static Ints mul_lower32(Ints a, Ints b) { return _mm512_mul_epu32(a, b); }
  static Ints mul64(Ints a, uint64_t factor) {
    return _mm512_mullo_epi64(a, _mm512_set1_epi64(static_cast<long long>(factor)));
  }

  static Floats add_floats(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats mul_floats(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats div_floats(Floats a, Floats b) { return _mm512_div_ps(a, b); }
  /// `a` where the value is a NaN, else `b`.
  static Ints select_nan(Floats value, Ints a, Ints b) {
    return _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q), b, a);
  }

  /// A byte in each 32 bits.
  static Ints load_bytes(const uint8_t* from) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static Halves load_halves(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
  static void store_halves(uint8_t* to, Halves a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), a); }
  static Floats floats_of_bf16(Halves a) { return as_floats(_mm512_slli_epi32(_mm512_cvtepu16_epi32(a), 16)); }
  static Floats floats_of_f16(Halves a) { return _mm512_cvtph_ps(a); }
  static Halves f16_of(Floats a) { return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT); }
  static Halves upper_halves(Ints a) { return _mm512_cvtepi32_epi16(right32<16>(a)); }

  /// 16-bit lanes of less than 256 to bytes, mixed up as in_order expects.
  static Ints narrow16(Ints a, Ints b) { return _mm512_packus_epi16(a, b); }
  static Ints in_order(Ints a) { return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), a); }
  /// 32-bit lanes of less than 256 to bytes.
  static Ints bytes_of(Ints a, Ints b, Ints c, Ints d) {
    const Ints mixed = narrow16(_mm512_packus_epi32(a, b), _mm512_packus_epi32(c, d));
    const Ints order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(order, mixed);
  }
};

constexpr VectorCode kAvx512 = vector_code_of<Avx512>("avx512");

}  // namespace

const VectorCode& avx512_vector_code();
const VectorCode& avx512_vector_code() { return kAvx512; }

}  // namespace layercast
