// The conversions, exhaustively: every 16-bit pattern, F32 patterns of every exponent round every rounding edge, and
// quotients that come as near to halfway between two codes as F32 allows.
#include <cmath>
#include <cstring>

#include "cpu/numbers.h"
#include "program.h"
#include "scheme_reference.h"
#include "values.h"

namespace layercast::conformance {
namespace {

constexpr uint64_t kCols = 4096;

std::vector<uint32_t> patterns_of(DType dtype) {
  std::vector<uint32_t> patterns;
  for (uint32_t upper = 0; upper < 0x10000; upper++) {
    if (dtype != DType::f32) {
      patterns.push_back(upper);
      continue;
    }
    for (const uint32_t lower : {0u, 1u, 0x0FFFu, 0x1000u, 0x1001u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu}) {
      patterns.push_back(upper << 16 | lower);
    }
  }
  return patterns;
}

float value_in(DType dtype, uint32_t bits) {
  if (dtype == DType::bf16) return float_from_bf16(static_cast<uint16_t>(bits));
  if (dtype == DType::f16) return float_from_f16(static_cast<uint16_t>(bits));
  return float_of(bits);
}

/// Rows of the patterns. With a scale of one, 448 stands at the beginning of each scale block, and in place of all that
/// is larger.
ByteVector matrix_with(DType dtype, std::vector<uint32_t> patterns, bool scale_is_one) {
  const uint64_t size = dtype_bytes(dtype);
  ByteVector matrix(patterns.size() * size);
  for (uint64_t i = 0; i < patterns.size(); i++) {
    const float value = value_in(dtype, patterns[i]);
    if (scale_is_one && (std::abs(value) > 448.0f || i % 128 == 0)) patterns[i] = bits_in(dtype, 448.0f);
    std::memcpy(&matrix[i * size], &patterns[i], size);
  }
  return matrix;
}

/// The patterns in an order in which each stands once where 448 is not put.
std::vector<uint32_t> moved(std::vector<uint32_t> patterns, uint64_t by) {
  std::rotate(patterns.begin(), patterns.begin() + static_cast<int64_t>(by), patterns.end());
  return patterns;
}

/// The greatest absolute value of elements that share a scale, of 2^-11 to 2^114.
float random_amax(std::mt19937& random) {
  const auto exponent = static_cast<uint32_t>(random() % 126 + 116);
  return float_of(exponent << 23 | static_cast<uint32_t>(random() & 0x7FFFFFu));
}

/// F32 elements of many scales, each the scale times a value halfway between two codes, give or take a little.
ByteVector near_ties(Scheme scheme, uint64_t rows, uint32_t seed) {
  std::mt19937 random(seed);
  const Granularity granularity = granularity_of(scheme);
  std::vector<float> amax(scale_count(granularity, rows, kCols));
  for (float& one : amax) one = random_amax(random);
  std::vector<float> matrix(rows * kCols);
  for (uint64_t element = 0; element < matrix.size(); element++) {
    const uint64_t row = element / kCols, col = element % kCols;
    const float greatest = amax[scale_index(granularity, row, col, kCols)];
    const float scale = test::scale_reference(scheme, greatest);
    const auto sixteenths = static_cast<float>(17 + 2 * (random() % 8));
    const float value = scale * std::ldexp(sixteenths, static_cast<int>(random() % 18) - 14);
    const float nudged = float_of(bits_of(value) + static_cast<uint32_t>(random() % 5) - 2);
    const bool is_first = granularity == Granularity::row ? col == 0 : row % kScaleBlock == 0 && col % kScaleBlock == 0;
    matrix[element] = is_first || nudged > greatest ? greatest : random() & 1 ? nudged : -nudged;
  }
  return test::bytes_of(matrix);
}

/// A row of blocks in each of which one element is not zero: any positive F32, subnormal ones too.
ByteVector many_amax(uint64_t blocks, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> matrix(blocks * kScaleBlock, 0.0f);
  for (uint64_t block = 0; block < blocks; block++) {
    matrix[block * kScaleBlock + random() % kScaleBlock] = float_of(static_cast<uint32_t>(random()) % kInfinityBits);
  }
  return test::bytes_of(matrix);
}

}  // namespace

void check_conversions(const Subject& subject, const Options& options, Score& score) {
  const uint64_t half_bytes = 16 << 20;
  const OpenHalf half(subject, HalfKind::own, half_bytes);
  const Oracle oracle(subject, half_bytes);
  const auto check = [&](const std::string& name, const Program& program) {
    score.law(name, [&] {
      require_equal(program, run_program(subject, program, half.base(), by_buffer(subject, program)), oracle(program));
    });
  };
  for (const DType source : {DType::bf16, DType::f16, DType::f32}) {
    const std::vector<uint32_t> patterns = patterns_of(source);
    const uint64_t rows = patterns.size() / kCols;
    for (const DType out : {DType::bf16, DType::f16, DType::f32}) {
      Program program;
      add_op(program, Scheme::none, source, out, out, rows, kCols, 0, false, matrix_with(source, patterns, false));
      check("every pattern, rounded", program);
    }
    for (const Scheme scheme : test::kQuantizing) {
      for (const uint64_t by : {0, 64}) {
        Program program;
        const ByteVector matrix = matrix_with(source, moved(patterns, by), true);
        add_op(program, scheme, source, DType::none, DType::f8_e4m3, rows, kCols, 0, false, matrix);
        check("every pattern, as a code", program);
      }
    }
  }
  for (uint32_t seed = 0; seed < (options.quick ? 2u : 20u); seed++) {
    for (const Scheme scheme : {Scheme::fp8_channel, Scheme::fp8_block}) {
      Program program;
      add_op(program, scheme, DType::f32, DType::none, DType::f8_e4m3, 256, kCols, 0, false,
             near_ties(scheme, 256, seed));
      check("values near ties", program);
    }
    constexpr uint64_t kBlocks = 8192;
    Program program;
    add_op(program, Scheme::fp8_block, DType::f32, DType::none, DType::f8_e4m3, 1, kBlocks * kScaleBlock, 0, false,
           many_amax(kBlocks, seed));
    check("scales of blocks", program);
  }
}

}  // namespace layercast::conformance
