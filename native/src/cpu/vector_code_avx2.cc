// Vectors of 32 bytes. Compiled for AVX2 and F16C: call nothing here before asking whether the machine has them.
#include <immintrin.h>

#include "vector_loops.h"

namespace layercast {
namespace {

struct Avx2 {
  static constexpr uint64_t kBytes = 32;
  using Ints = __m256i;
  using Floats = __m256;
  using Halves = __m128i;

  static Ints load(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }
  static void store(void* at, Ints a) { _mm256_storeu_si256(static_cast<__m256i*>(at), a); }
  static void stream(void* at, Ints a) { _mm256_stream_si256(static_cast<__m256i*>(at), a); }
  static void fence() { _mm_sfence(); }
  static Ints as_ints(Floats a) { return _mm256_castps_si256(a); }
  static Floats as_floats(Ints a) { return _mm256_castsi256_ps(a); }

  static Ints set8(uint8_t value) { return _mm256_set1_epi8(static_cast<char>(value)); }
  static Ints set16(uint16_t value) { return _mm256_set1_epi16(static_cast<short>(value)); }
  static Ints set32(uint32_t value) { return _mm256_set1_epi32(static_cast<int>(value)); }
  static Floats set_float(float value) { return _mm256_set1_ps(value); }
  static Ints repeat16(const uint8_t* bytes) {
    return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
  }

  static Ints bit_and(Ints a, Ints b) { return _mm256_and_si256(a, b); }
  static Ints bit_or(Ints a, Ints b) { return _mm256_or_si256(a, b); }
  template <int kBits>
  static Ints right16(Ints a) { return _mm256_srli_epi16(a, kBits); }
  template <int kBits>
  static Ints left16(Ints a) { return _mm256_slli_epi16(a, kBits); }
  template <int kBits>
  static Ints left32(Ints a) { return _mm256_slli_epi32(a, kBits); }
  template <int kBits>
  static Ints right32(Ints a) { return _mm256_srli_epi32(a, kBits); }
  template <int kBits>
  static Ints right64(Ints a) { return _mm256_srli_epi64(a, kBits); }
  template <int kBits>
  static Ints left64(Ints a) { return _mm256_slli_epi64(a, kBits); }

  static Ints add8(Ints a, Ints b) { return _mm256_add_epi8(a, b); }
  static Ints add8_saturated(Ints a, Ints b) { return _mm256_adds_epu8(a, b); }
  static Ints sub8_saturated(Ints a, Ints b) { return _mm256_subs_epu8(a, b); }
  static Ints max8(Ints a, Ints b) { return _mm256_max_epu8(a, b); }
  static Ints min8(Ints a, Ints b) { return _mm256_min_epu8(a, b); }
  /// sum + (a > b), bytes of less than 128.
  static Ints add8_if_greater(Ints sum, Ints a, Ints b) { return _mm256_sub_epi8(sum, _mm256_cmpgt_epi8(a, b)); }
  static Ints not_less8(Ints a, Ints b) { return _mm256_cmpeq_epi8(_mm256_max_epu8(a, b), a); }
  static bool any8_less(Ints a, Ints b) { return _mm256_movemask_epi8(not_less8(a, b)) != -1; }
  /// `c` where a < b, else `d`.
  static Ints select8_less(Ints a, Ints b, Ints c, Ints d) { return _mm256_blendv_epi8(c, d, not_less8(a, b)); }
  /// Of each 8 bytes, in 64 bits.
  static Ints sums_of_8(Ints a) { return _mm256_sad_epu8(a, _mm256_setzero_si256()); }
  /// In each 16 bytes, the table's bytes that the indices name; both less than 16 long.
  static Ints look_up(Ints table, Ints indices) { return _mm256_shuffle_epi8(table, indices); }

  /// sum + (a > b), of less than 2^15.
  static Ints add16_if_greater(Ints sum, Ints a, Ints b) { return _mm256_sub_epi16(sum, _mm256_cmpgt_epi16(a, b)); }
  static Ints max16(Ints a, Ints b) { return _mm256_max_epi16(a, b); }
  static Ints add32(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
  static Ints sub32(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
  static Ints min32(Ints a, Ints b) { return _mm256_min_epi32(a, b); }
  static Ints max32(Ints a, Ints b) { return _mm256_max_epi32(a, b); }
  /// `c` where a < b, signed, else `d`.
  static Ints select32_less(Ints a, Ints b, Ints c, Ints d) {
    return _mm256_blendv_epi8(d, c, _mm256_cmpgt_epi32(b, a));
  }
  static Ints add64(Ints a, Ints b) { return _mm256_add_epi64(a, b); }
  /// Of the lower 32 bits of each 64.
  static Ints mul_lower32(Ints a, Ints b) { return _mm256_mul_epu32(a, b); }
  static Ints mul64(Ints a, uint64_t factor) {
    const Ints low = _mm256_set1_epi64x(static_cast<long long>(factor));
    const Ints high = _mm256_set1_epi64x(static_cast<long long>(factor >> 32));
    const Ints crossed = add64(mul_lower32(right64<32>(a), low), mul_lower32(a, high));
    return add64(mul_lower32(a, low), left64<32>(crossed));
  }

  static Floats add_floats(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static Floats mul_floats(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static Floats div_floats(Floats a, Floats b) { return _mm256_div_ps(a, b); }
  /// `a` where the value is a NaN, else `b`.
  static Ints select_nan(Floats value, Ints a, Ints b) {
    return as_ints(_mm256_blendv_ps(as_floats(b), as_floats(a), _mm256_cmp_ps(value, value, _CMP_UNORD_Q)));
  }

  /// A byte in each 32 bits.
  static Ints load_bytes(const uint8_t* from) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  }
  static Halves load_halves(const uint8_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }
  static void store_halves(uint8_t* to, Halves a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), a); }
  static Floats floats_of_bf16(Halves a) { return as_floats(_mm256_slli_epi32(_mm256_cvtepu16_epi32(a), 16)); }
  static Floats floats_of_f16(Halves a) { return _mm256_cvtph_ps(a); }
  static Halves f16_of(Floats a) { return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT); }
  static Halves upper_halves(Ints a) {
    const Ints halves = right32<16>(a);
    return _mm_packus_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
  }

  /// 16-bit lanes of less than 256 to bytes, mixed up as in_order expects.
  static Ints narrow16(Ints a, Ints b) { return _mm256_packus_epi16(a, b); }
  static Ints in_order(Ints a) { return _mm256_permute4x64_epi64(a, _MM_SHUFFLE(3, 1, 2, 0)); }
  /// 32-bit lanes of less than 256 to bytes.
  static Ints bytes_of(Ints a, Ints b, Ints c, Ints d) {
    const Ints mixed = narrow16(_mm256_packus_epi32(a, b), _mm256_packus_epi32(c, d));
    return _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  }
};

constexpr VectorCode kAvx2 = vector_code_of<Avx2>("avx2");

}  // namespace

const VectorCode& avx2_vector_code();
const VectorCode& avx2_vector_code() { return kAvx2; }

}  // namespace layercast
