// What is derived from matrices that are finished, and codes that are copied as they are: against a slow reference, whichever
// backend is asked.
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>

#include "program.h"
#include "scheme_reference.h"

namespace layercast::conformance {
namespace {

using namespace layercast::test;

struct Shape {
  uint64_t heads;
  uint64_t head_rows;
  uint64_t first_row;
  uint64_t rows;
  uint64_t cols;
  uint64_t shift;  // of the output, in its elements, past an alignment
};

constexpr Shape kShapes[] = {
    {1, 1, 0, 1, 1, 0},        {1, 1, 1, 0, 5, 0},      {2, 5, 2, 3, 7, 1},       {3, 40, 8, 32, 64, 0},
    {2, 200, 130, 70, 300, 3}, {4, 256, 0, 128, 512, 0}, {4, 256, 128, 128, 512, 7}, {1, 130, 1, 129, 129, 5},
};

struct Kind {
  Scheme scheme;
  DType weight;
  DType out;
};

std::vector<Kind> kinds() {
  std::vector<Kind> all;
  for (const DType out : {DType::bf16, DType::f16, DType::f32}) {
    all.push_back({Scheme::none, out, out});
    for (const Scheme scheme : kQuantizing) all.push_back({scheme, DType::f8_e4m3, out});
  }
  return all;
}

ByteVector random_bytes(uint64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  ByteVector bytes(count);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}

/// Of every size, so that products underflow and overflow too.
ByteVector scales(uint64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> values(count);
  for (float& value : values) {
    value = std::ldexp(1.0f + static_cast<float>(random() % 8388608) / 8388608.0f, static_cast<int>(random() % 260) - 140);
  }
  return bytes_of(values);
}

/// The bits of code times scale.
uint32_t product_bits(uint8_t code, float scale, DType out) {
  const float value = static_cast<float>(e4m3_value(code)) * scale;
  if (out == DType::bf16) return bf16_reference(value);
  if (out == DType::f16) return f16_reference(value);
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return std::isnan(value) ? (code & 0x80u) << 24 | 0x7FC00000u : bits;
}

/// A matrix and its scales in a half, and what is to be derived from it behind them.
struct Case {
  Program program;
  Derived derived;
};

Case case_of(const Kind& kind, const Shape& shape, bool transposed) {
  Case made;
  Program& program = made.program;
  const uint64_t rows = shape.heads * shape.head_rows;
  add_op(program, Scheme::none, kind.weight, DType::none, kind.weight, rows, shape.cols, 0, false,
         random_bytes(rows * shape.cols * dtype_bytes(kind.weight), 1));
  const uint64_t scale_rows = scale_count(granularity_of(kind.scheme), rows, shape.cols);
  if (scale_rows > 0) {
    add_op(program, Scheme::none, DType::f32, DType::none, DType::f32, scale_rows, 1, 0, false, scales(scale_rows, 2));
  }
  const uint64_t size = dtype_bytes(kind.out);
  const uint64_t out_offset = (program.half_bytes + 255) / 256 * 256 + shape.shift * size;
  program.half_bytes = out_offset + shape.heads * shape.rows * shape.cols * size + 100;
  made.derived = {kind.scheme,
                  program.specs[0].op.out_offset,
                  kind.weight,
                  scale_rows > 0 ? static_cast<int64_t>(program.specs[1].op.out_offset) : -1,
                  out_offset,
                  kind.out,
                  shape.heads,
                  shape.head_rows,
                  shape.first_row,
                  shape.rows,
                  shape.cols,
                  transposed};
  return made;
}

uint32_t expected_bits(const Case& one, uint64_t row, uint64_t col) {
  const Derived& derived = one.derived;
  const uint64_t element = row * derived.cols + col;
  const ByteVector& weight = one.program.matrices[0];
  if (derived.scheme == Scheme::none) {
    uint32_t bits = 0;
    const uint64_t size = dtype_bytes(derived.weight_dtype);
    std::memcpy(&bits, weight.data() + element * size, size);
    return bits;
  }
  const uint64_t index = scale_index_reference(derived.scheme, row, col, derived.cols);
  return product_bits(weight[element], value_at<float>(one.program.matrices[1], index * 4), derived.out_dtype);
}

/// The half after all of it.
ByteVector expected_half(const Case& one) {
  const Derived& derived = one.derived;
  ByteVector half(one.program.half_bytes, kUntouched);
  for (size_t i = 0; i < one.program.specs.size(); i++) {
    std::ranges::copy(one.program.matrices[i], half.begin() + static_cast<int64_t>(one.program.specs[i].op.out_offset));
  }
  const uint64_t size = dtype_bytes(derived.out_dtype);
  for (uint64_t head = 0; head < derived.heads; head++) {
    for (uint64_t row = 0; row < derived.rows; row++) {
      for (uint64_t col = 0; col < derived.cols; col++) {
        const uint32_t bits = expected_bits(one, head * derived.head_rows + derived.first_row + row, col);
        const uint64_t in_head = derived.transposed ? col * derived.rows + row : row * derived.cols + col;
        const uint64_t at = head * derived.rows * derived.cols + in_head;
        std::memcpy(half.data() + derived.out_offset + at * size, &bits, size);
      }
    }
  }
  return half;
}

void check_case(const Subject& subject, const Case& one, uint8_t* base) {
  const Backend& backend = subject.backend;
  const Derived& derived = one.derived;
  run_program(subject, one.program, base, by_buffer(subject, one.program));
  const RunSpec nothing = {nullptr, 0, base};
  Run* begun = nullptr;
  subject.check(backend.begin_run(subject.device, &nothing, &begun));
  const std::unique_ptr<Run, void (*)(Run*)> run(begun, backend.end_run);
  subject.pool.each(derived.heads, nullptr, [&](uint64_t head, uint32_t lane) {
    subject.check(backend.derive(run.get(), lane, &derived, head));
  });
  RunTotals totals = {};
  subject.check(backend.finish(run.get(), nullptr, &totals));
  ByteVector half(one.program.half_bytes);
  subject.check(backend.read_back(subject.device, 0, base, half.size(), half.data()));
  const ByteVector expected = expected_half(one);
  for (uint64_t i = 0; i < half.size(); i++) {
    require(half[i] == expected[i], "byte " + std::to_string(i) + " of the half is " + std::to_string(half[i]) + ", not " +
                                        std::to_string(expected[i]) + "; what is derived begins at " +
                                        std::to_string(derived.out_offset));
  }
  const uint64_t bytes = derived.heads * derived.rows * derived.cols * dtype_bytes(derived.out_dtype);
  require(totals.bytes_written == bytes, "bytes written are " + std::to_string(totals.bytes_written));
  uint64_t digest = 0;
  if (bytes > 0) subject.check(backend.digest(subject.device, 0, base, derived.out_offset, bytes, &digest));
  require(totals.digest == digest, "the digest of what was written is wrong");
}

}  // namespace

void check_derived(const Subject& subject, Score& score) {
  constexpr uint64_t kHalfBytes = 16 << 20;
  const OpenHalf half(subject, HalfKind::own, kHalfBytes);
  for (const Kind& kind : kinds()) {
    for (const Shape& shape : kShapes) {
      for (const bool transposed : {false, true}) {
        const std::string name = "derived from " + name_of(kind.scheme) + " as " + name_of(kind.out) + ", " +
                                 std::to_string(shape.heads) + " heads of " + std::to_string(shape.rows) + " by " +
                                 std::to_string(shape.cols) + (transposed ? ", transposed" : "");
        score.law(name, [&] { check_case(subject, case_of(kind, shape, transposed), half.base()); });
      }
    }
  }
}

}  // namespace layercast::conformance
