// Every vector code that this machine has against the portable one, bit for bit: function by function, then whole runs
// of the CPU's backend.
#include "cpu/vector_code.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>

#include "check.h"
#include "cpu/run.h"
#include "digest.h"
#include "support.h"
#include "tiles.h"

using namespace layercast;
using namespace layercast::test;

namespace {

constexpr DType kSources[] = {DType::bf16, DType::f16, DType::f32};
constexpr DType kRounds[] = {DType::none, DType::bf16, DType::f16, DType::f32};
constexpr Scaling::By kByBoth[] = {Scaling::By::factor, Scaling::By::divisor};
constexpr uint64_t kMostElements = 200;  // several of the widest vectors, and a part of one

template <class Body>
void each_vector_code(const Body& body) {
  for (const VectorCode* code : available_vector_codes().subspan(1)) body(*code);
}

/// Reports the first element that differs, by its index.
template <class T>
void check_same(const std::string& what, const std::vector<T>& actual, const std::vector<T>& expected) {
  if (actual.size() == expected.size() && std::memcmp(actual.data(), expected.data(), actual.size() * sizeof(T)) == 0) {
    return;
  }
  size_t i = 0;
  while (std::memcmp(&actual[i], &expected[i], sizeof(T)) == 0) i++;
  std::ostringstream message;
  message << what << ": element " << i << " is 0x" << std::hex << +actual[i] << ", not 0x" << +expected[i];
  report_failure(__FILE__, __LINE__, message.str());
}

std::string text(const VectorCode& code, DType dtype) {
  return std::string(code.name) + ", dtype " + std::to_string(static_cast<int>(dtype));
}

std::string text(const VectorCode& code, DType dtype, Scaling scaling) {
  std::ostringstream message;
  message << text(code, dtype) << (scaling.by == Scaling::By::factor ? " times " : " by ") << std::hexfloat
          << scaling.number;
  return message.str();
}

/// All bit patterns of 16 bits; of F32 those of every upper half, beside each halfway point of the narrower formats.
ByteVector patterns(DType dtype) {
  std::vector<uint16_t> halves(0x10000);
  for (uint32_t i = 0; i < halves.size(); i++) halves[i] = static_cast<uint16_t>(i);
  if (dtype != DType::f32) return bytes_of(halves);
  std::vector<uint32_t> words;
  for (const uint32_t upper : halves) {
    for (const uint32_t lower : {0u, 1u, 0x0FFFu, 0x1000u, 0x1001u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu}) {
      words.push_back(upper << 16 | lower);
    }
  }
  return bytes_of(words);
}

ByteVector finite_bf16() {
  std::vector<uint16_t> finite;
  for (uint32_t i = 0; i < 0x10000; i++) {
    if ((i & 0x7F80) != 0x7F80) finite.push_back(static_cast<uint16_t>(i));
  }
  return bytes_of(finite);
}

std::vector<uint32_t> words_of(const std::vector<float>& values) {
  std::vector<uint32_t> words;
  for (const float value : values) words.push_back(std::bit_cast<uint32_t>(value));
  return words;
}

std::vector<uint32_t> converted(const VectorCode& code, DType source, DType round, const ByteVector& from) {
  std::vector<float> values(from.size() / dtype_bytes(source));
  const uint32_t greatest = code.convert(source, round, from.data(), values.size(), values.data());
  std::vector<uint32_t> words = words_of(values);
  words.push_back(greatest);
  return words;
}

Elements one_row(const ByteVector& from, DType dtype) {
  const uint64_t count = from.size() / dtype_bytes(dtype);
  return {from.data(), dtype, 1, count, count};
}

ByteVector encoded(const VectorCode& code, const Elements& elements, Scaling scaling) {
  ByteVector codes(elements.rows * elements.cols);
  code.encode(elements, scaling, codes.data(), elements.cols);
  return codes;
}

/// Scales as amax makes them, for each mantissa that an amax can have and exponents far apart.
std::vector<float> scales_of_amax() {
  std::vector<float> scales;
  for (int exponent = -126; exponent <= 127; exponent += 11) {
    for (int mantissa = 0; mantissa < 128; mantissa++) {
      scales.push_back(std::ldexp(1.0f + static_cast<float>(mantissa) / 128, exponent) / 448.0f);
    }
  }
  return scales;
}

/// Any numbers: powers of two, their neighbours, the ends of the range, and what no scale is.
std::vector<float> odd_scales() {
  std::vector<float> scales = {0.0f, -1.0f, std::numeric_limits<float>::infinity(),
                               std::numeric_limits<float>::quiet_NaN(), 0x1p-149f, 0x1.8p-127f, 0x1.FFFFFEp127f};
  for (int exponent = -127; exponent <= 127; exponent++) {
    const float power = std::ldexp(1.0f, exponent);
    scales.insert(scales.end(), {power, std::nextafter(power, 0.0f), std::nextafter(power, 2 * power)});
  }
  std::mt19937 random(7);
  for (int i = 0; i < 200; i++) scales.push_back(std::bit_cast<float>(static_cast<uint32_t>(random())));
  return scales;
}

ByteVector random_bytes(uint64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  ByteVector bytes(count);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}

/// Elements that are mostly ordinary weights, and some of any bits.
ByteVector weights(DType dtype, uint64_t count, bool finite, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  std::vector<float> values(count);
  for (float& value : values) {
    value = random() % 8 == 0 ? std::bit_cast<float>(static_cast<uint32_t>(random())) : normal(random);
    if (finite && !(std::abs(value) < 60000)) value = 0;
  }
  ByteVector bytes(count * dtype_bytes(dtype));
  portable_vector_code().narrow(dtype, values.data(), count, bytes.data());
  return bytes;
}

}  // namespace

LAW("vector codes convert and round every 16-bit pattern and every kind of F32 alike, NaNs too") {
  for (const DType source : kSources) {
    const ByteVector from = patterns(source);
    for (const DType round : kRounds) {
      const auto expected = converted(portable_vector_code(), source, round, from);
      each_vector_code([&](const VectorCode& code) {
        check_same(text(code, source) + " rounded to " + std::to_string(static_cast<int>(round)),
                   converted(code, source, round, from), expected);
      });
    }
  }
}

LAW("vector codes narrow every kind of F32 alike") {
  const ByteVector from = patterns(DType::f32);
  const uint64_t count = from.size() / sizeof(float);
  std::vector<float> values(count);
  std::memcpy(values.data(), from.data(), from.size());
  for (const DType dtype : kSources) {
    ByteVector expected(count * dtype_bytes(dtype));
    portable_vector_code().narrow(dtype, values.data(), count, expected.data());
    each_vector_code([&](const VectorCode& code) {
      ByteVector actual(expected.size());
      code.narrow(dtype, values.data(), count, actual.data());
      check_same(text(code, dtype), actual, expected);
    });
  }
}

LAW("vector codes encode every finite BF16 alike, whatever the factor or divisor") {
  const ByteVector from = finite_bf16();
  const Elements elements = one_row(from, DType::bf16);
  std::vector<float> scales = scales_of_amax();
  const std::vector<float> odd = odd_scales();
  scales.insert(scales.end(), odd.begin(), odd.end());
  for (const float scale : scales) {
    for (const Scaling scaling : {Scaling{Scaling::By::divisor, scale}, Scaling{Scaling::By::factor, 1.0f / scale}}) {
      const ByteVector expected = encoded(portable_vector_code(), elements, scaling);
      each_vector_code([&](const VectorCode& code) {
        check_same(text(code, DType::bf16, scaling), encoded(code, elements, scaling), expected);
      });
    }
  }
}

LAW("vector codes encode every finite BF16 alike among values of ordinary size") {
  constexpr uint64_t kApart = 67;
  const ByteVector patterns = finite_bf16();
  std::mt19937 random(2);
  for (int exponent = -100; exponent <= 100; exponent += 20) {
    const float amax = std::ldexp(1.0f + static_cast<float>(random() % 128) / 128, exponent);
    std::uniform_real_distribution<float> ordinary(amax / 8, amax);
    std::vector<float> values(patterns.size() / 2 * kApart);
    for (float& value : values) value = ordinary(random);
    ByteVector from(2 * values.size());
    portable_vector_code().narrow(DType::bf16, values.data(), values.size(), from.data());
    for (uint64_t i = 0; i < patterns.size(); i += 2) std::memcpy(&from[i * kApart], &patterns[i], 2);
    for (const Scaling scaling : {Scaling{Scaling::By::divisor, amax / 448}, {Scaling::By::factor, 448 / amax}}) {
      const ByteVector expected = encoded(portable_vector_code(), one_row(from, DType::bf16), scaling);
      each_vector_code([&](const VectorCode& code) {
        check_same(text(code, DType::bf16, scaling), encoded(code, one_row(from, DType::bf16), scaling), expected);
      });
    }
  }
}

LAW("vector codes encode every kind of F32 alike, NaNs and infinities too") {
  const ByteVector from = patterns(DType::f32);
  const Elements elements = one_row(from, DType::f32);
  std::mt19937 random(3);
  std::vector<float> scales = odd_scales();
  std::shuffle(scales.begin() + 7, scales.end(), random);
  scales.resize(32);
  for (const float scale : scales) {
    for (const Scaling::By by : kByBoth) {
      const ByteVector expected = encoded(portable_vector_code(), elements, {by, scale});
      each_vector_code([&](const VectorCode& code) {
        check_same(text(code, DType::f32, {by, scale}), encoded(code, elements, {by, scale}), expected);
      });
    }
  }
}

LAW("vector codes do alike at any length and alignment, and write nothing past the end") {
  for (uint64_t count = 0; count <= kMostElements; count++) {
    const uint64_t shift = count % 7 + 1;
    for (const DType dtype : kSources) {
      ByteVector from = weights(dtype, count, true, static_cast<uint32_t>(count));
      from.insert(from.begin(), shift, 0xFF);
      const uint8_t* at = from.data() + shift;
      const auto results = [&](const VectorCode& code) {
        ByteVector bytes(shift + 4 * kMostElements + 64, 0xA5);
        if (dtype != DType::f16) {
          code.encode({at, dtype, 1, count, count}, {Scaling::By::divisor, 0x1p-13f}, bytes.data() + shift, count);
        }
        std::vector<float> values(kMostElements + 16, 3.0f);
        code.convert(dtype, DType::none, at, count, values.data());
        ByteVector narrowed(shift + 4 * kMostElements + 64, 0xA5);
        code.narrow(dtype, values.data(), count, narrowed.data() + shift);
        for (const ByteVector& more : {bytes_of(words_of(values)), narrowed}) {
          bytes.insert(bytes.end(), more.begin(), more.end());
        }
        return bytes;
      };
      const ByteVector expected = results(portable_vector_code());
      each_vector_code([&](const VectorCode& code) {
        check_same(text(code, dtype) + ", " + std::to_string(count) + " elements", results(code), expected);
      });
    }
  }
}

LAW("vector codes find the greatest bits wherever they stand, and of the rows alone") {
  for (const DType dtype : kSources) {
    const uint64_t element_bytes = dtype_bytes(dtype);
    for (uint64_t cols = 0; cols <= kMostElements; cols += cols < 70 ? 1 : 13) {
      const uint64_t stride = cols + 3;
      // Between the rows stands what would be greater than all.
      ByteVector matrix(1 + 3 * stride * element_bytes, 0xFF);
      for (uint64_t row = 0; row < 3; row++) {
        const ByteVector elements = weights(dtype, cols, false, static_cast<uint32_t>(3 * cols + row));
        std::copy(elements.begin(), elements.end(), &matrix[1 + row * stride * element_bytes]);
      }
      const Elements elements = {matrix.data() + 1, dtype, 3, cols, stride};
      const uint32_t expected = portable_vector_code().greatest(elements);
      each_vector_code([&](const VectorCode& code) {
        if (code.greatest(elements) == expected) return;
        report_failure(__FILE__, __LINE__, text(code, dtype) + ": not that of " + std::to_string(cols) + " columns");
      });
    }
  }
}

LAW("vector codes encode a matrix row by row, leaving what stands between the rows") {
  for (const DType dtype : {DType::bf16, DType::f32}) {
    for (const uint64_t cols : {1u, 31u, 128u, 129u, 200u}) {
      const ByteVector from = weights(dtype, 5 * (cols + 9), true, static_cast<uint32_t>(cols));
      const auto result = [&](const VectorCode& code) {
        ByteVector codes(5 * (cols + 3), 0xA5);
        code.encode({from.data(), dtype, 5, cols, cols + 9}, {Scaling::By::factor, 4000.0f}, codes.data(), cols + 3);
        return codes;
      };
      const ByteVector expected = result(portable_vector_code());
      each_vector_code([&](const VectorCode& code) {
        check_same(text(code, dtype) + ", " + std::to_string(cols) + " columns", result(code), expected);
      });
    }
  }
}

LAW("vector codes digest any range alike, and copy what they digest, to any alignment") {
  const ByteVector from = random_bytes(9000, 5);
  for (const uint64_t offset : {0u, 1u, 3u, 64u, 255u, 256u, 1000u}) {
    for (const uint64_t bytes : {0u, 1u, 5u, 255u, 256u, 257u, 511u, 2048u, 7001u}) {
      ByteVector expected(9000, 0xA5);
      std::memcpy(expected.data() + offset, from.data() + 1, bytes);
      const uint64_t digest = digest_bytes(from.data() + 1, offset, bytes, portable_vector_code());
      for (const VectorCode* code : available_vector_codes()) {
        ByteVector copy(9000, 0xA5);
        CHECK_EQUAL(digest_bytes(from.data() + 1, offset, bytes, *code), digest);
        CHECK_EQUAL(copy_digested(from.data() + 1, bytes, copy.data(), offset, *code), digest);
        check_same(code->name, copy, expected);
      }
    }
  }
}

LAW("a block's factor is that of its place among all of an arena's") {
  const ByteVector from = random_bytes(1024, 6);
  for (const uint64_t block : {uint64_t{0}, uint64_t{1} << 31, (uint64_t{1} << 40) + 5, uint64_t{1} << 55}) {
    const uint64_t expected = portable_vector_code().digest_blocks(from.data(), block, 4);
    each_vector_code([&](const VectorCode& code) {
      CHECK_EQUAL(code.digest_blocks(from.data(), block, 4), expected);
    });
  }
}

namespace {

struct Result {
  ByteVector half;
  BadElements bad;
  uint64_t digest;
};

/// One op through the CPU backend's table, from host memory, with the vector code given.
Result run_op(const VectorCode& code, const OpSpec& spec, const ByteVector& elements, uint64_t half_bytes) {
  const Backend& backend = cpu_backend();
  Device* device = nullptr;
  Run* run = nullptr;
  Result result = {ByteVector(half_bytes, 0xA5), {}, 0};
  const RunSpec run_spec = {&spec, 1, result.half.data()};
  CHECK(backend.open(0, 1, &device) == Status::ok);
  device->vectors = &code;
  CHECK(backend.begin_run(device, &run_spec, &run) == Status::ok);
  const Op& op = spec.op;
  const uint64_t tile_rows = granularity_of(op.scheme) == Granularity::block ? kScaleBlock : 50;
  for (const bool measuring : {true, false}) {
    if (measuring && !is_measured(op.scheme)) continue;
    for (uint64_t row = 0; row < op.rows; row += tile_rows) {
      const Tile tile = {0, row, std::min(tile_rows, op.rows - row), 0, op.cols};
      const uint8_t* host = elements.data() + row * op.cols * dtype_bytes(spec.source);
      CHECK((measuring ? backend.measure : backend.put)(run, 0, &tile, host) == Status::ok);
    }
  }
  RunTotals totals = {};
  CHECK(backend.finish(run, &result.bad, &totals) == Status::ok);
  result.digest = totals.digest;
  backend.end_run(run);
  backend.close(device);
  return result;
}

void check_op(Scheme scheme, DType source, DType round, bool finite, bool must_be_positive) {
  constexpr uint64_t kRows = 131;
  constexpr uint64_t kCols = 389;
  const DType kept = round == DType::none ? source : round;
  Op op = filled(scheme, scheme == Scheme::none ? kept : DType::f8_e4m3, kRows, kCols);
  op.round_dtype = round;
  op.must_be_positive = must_be_positive;
  const ByteVector elements = weights(source, kRows * kCols, finite, 11);
  const uint64_t half_bytes = kRows * kCols * 4 + 4096;
  const OpSpec spec = {op, source, round};
  const Result expected = run_op(portable_vector_code(), spec, elements, half_bytes);
  each_vector_code([&](const VectorCode& code) {
    const Result actual = run_op(code, spec, elements, half_bytes);
    check_same(text(code, source) + ", scheme " + std::to_string(static_cast<int>(scheme)) + ", rounded to " +
                   std::to_string(static_cast<int>(round)) + (finite ? ", all finite" : ""),
               actual.half, expected.half);
    CHECK_EQUAL(actual.digest, expected.digest);
    CHECK_EQUAL(actual.bad.non_finite, expected.bad.non_finite);
    CHECK_EQUAL(actual.bad.not_positive, expected.bad.not_positive);
  });
}

}  // namespace

LAW("whole runs give the same codes, scales, digest and bad elements with every vector code") {
  for (const Scheme scheme : kEveryScheme) {
    for (const DType source : kSources) {
      for (const DType round : kRounds) {
        check_op(scheme, source, round, true, false);
        check_op(scheme, source, round, false, false);
      }
      check_op(scheme, source, DType::none, true, true);
    }
  }
}

LAW("a device uses the vector code that LAYERCAST_VECTORS names, else the widest; any other name is refused") {
  const auto opened_with = [] {
    Device* device = nullptr;
    if (cpu_backend().open(0, 1, &device) != Status::ok) return std::string(cpu_backend().last_error());
    const std::string name = device->vectors->name;
    cpu_backend().close(device);
    return name;
  };
  const char* variable = "LAYERCAST_VECTORS";
  const char* value = std::getenv(variable);
  const std::string before = value == nullptr ? "" : value;
  for (const VectorCode* code : available_vector_codes()) {
    setenv(variable, code->name, 1);
    CHECK_EQUAL(opened_with(), code->name);
  }
  setenv(variable, "avx1024", 1);
  const std::string refusal = opened_with();
  CHECK(refusal.find("LAYERCAST_VECTORS") != std::string::npos);
  CHECK(refusal.find("portable") != std::string::npos);
  CHECK(refusal.find("avx1024") != std::string::npos);
  unsetenv(variable);
  CHECK_EQUAL(opened_with(), available_vector_codes().back()->name);
  if (value != nullptr) setenv(variable, before.c_str(), 1);
}
