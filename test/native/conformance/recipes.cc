// Every recipe, dtype, shape and class of values: bytes, scales, bad elements and totals as the oracle has them.
#include <algorithm>
#include <sstream>

#include "program.h"
#include "values.h"

namespace layercast::conformance {
namespace {

struct Shape {
  uint64_t rows;
  uint64_t cols;
  uint64_t shift;  // of the output, in elements
  uint64_t tile_bytes;
};

/// Tiles small enough that a matrix is many, cut in the middle of rows too; shifts by which nothing is aligned.
constexpr Shape kQuick[] = {
    {1, 1, 0, 0}, {7, 37, 3, 0}, {129, 257, 0, 4 << 10}, {128, 256, 0, 0}, {3, 5003, 5, 4098}, {257, 144, 8, 72 << 10},
};
constexpr Shape kMore[] = {
    {1, 16, 0, 0},      {1, 17, 15, 0},       {300, 1, 1, 512},         {33, 64, 0, 1 << 10}, {257, 129, 7, 8 << 10},
    {64, 1040, 0, 8192}, {64, 1040, 1, 8192}, {2, 40'001, 0, 64 << 10}, {5, 16'384, 0, 0},    {4, 33'000, 0, 0},
    {256, 384, 16, 0},  {9, 8208, 0, 16384},
};

struct Conversion {
  Scheme scheme;
  DType source;
  DType round;
  DType out;
};

std::vector<Conversion> conversions(const std::string& only) {
  constexpr DType kSources[] = {DType::bf16, DType::f16, DType::f32};
  std::vector<Conversion> all;
  for (const DType source : kSources) {
    all.push_back({Scheme::none, source, DType::none, source});
    for (const DType out : kSources) all.push_back({Scheme::none, source, out, out});
    for (const DType round : {DType::bf16, DType::f16}) all.push_back({Scheme::none, source, round, DType::f32});
    for (const Scheme scheme : test::kQuantizing) {
      all.push_back({scheme, source, DType::none, DType::f8_e4m3});
      for (const DType round : kSources) all.push_back({scheme, source, round, DType::f8_e4m3});
    }
  }
  if (!only.empty()) std::erase_if(all, [&](const Conversion& one) { return name_of(one.scheme) != only; });
  require(!all.empty(), "there is no scheme " + only);
  return all;
}

Program program_of(const Conversion& conversion, const Shape& shape, const ValueClass& values, bool must_be_positive) {
  const auto seed = static_cast<uint32_t>(shape.rows * 1000 + shape.cols);
  Program program;
  program.tile_bytes = shape.tile_bytes;
  add_op(program, conversion.scheme, conversion.source, conversion.round, conversion.out, shape.rows, shape.cols,
         shape.shift, must_be_positive, matrix_of(values, conversion.source, shape.rows, shape.cols, seed));
  return program;
}

uint64_t most_bytes(std::span<const Shape> shapes) {
  uint64_t bytes = 0;
  for (const Shape& shape : shapes) bytes = std::max(bytes, shape.rows * shape.cols * 8);
  return bytes + (1 << 20);
}

}  // namespace

void check_recipes(const Subject& subject, const Options& options, Score& score) {
  std::vector<Shape> shapes(std::begin(kQuick), std::end(kQuick));
  if (!options.quick) shapes.insert(shapes.end(), std::begin(kMore), std::end(kMore));
  const uint64_t half_bytes = most_bytes(shapes);
  const OpenHalf half(subject, HalfKind::own, half_bytes);
  const Oracle oracle(subject, half_bytes);
  for (const Conversion& conversion : conversions(options.scheme)) {
    for (const Shape& shape : shapes) {
      for (const ValueClass& values : value_classes()) {
        // A law about all elements: half of the matrices are enough to try it on.
        const bool must_be_positive = (shape.rows + values.name[0]) % 2 == 0 && conversion.scheme == Scheme::none;
        score.law(std::string("class ") + values.name, [&] {
          const Program program = program_of(conversion, shape, values, must_be_positive);
          require_equal(program, run_program(subject, program, half.base(), by_buffer(subject, program)),
                        oracle(program));
        });
      }
    }
  }
}

}  // namespace layercast::conformance
