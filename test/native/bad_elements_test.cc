// Values that a program does not allow: which one is reported, and what becomes of them where they are allowed.
#include <limits>

#include "check.h"
#include "scheme_reference.h"
#include "support.h"

using namespace layercast;
using namespace layercast::test;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Element {
  uint64_t row;
  uint64_t col;
  float value;
};

/// Ones, but for the given elements.
std::vector<float> matrix_with(uint64_t rows, uint64_t cols, const std::vector<Element>& elements) {
  std::vector<float> matrix(rows * cols, 1.0f);
  for (const Element& element : elements) matrix[element.row * cols + element.col] = element.value;
  return matrix;
}

LayerProgram f32_program(const std::string& path, Scheme scheme, uint64_t rows, uint64_t cols) {
  LayerProgram program = {{planned(path)}, {}, {contiguous(0, rows, cols, DType::f32)}, false};
  program.ops = {filled(scheme, scheme == Scheme::none ? DType::f32 : DType::f8_e4m3, rows, cols)};
  return program;
}

void check_place(const NativeError& error, ErrorCode code, double slice, double row, double col) {
  CHECK_EQUAL(error.code_name(), kErrorCodes[static_cast<size_t>(code)]);
  CHECK_EQUAL(detail(error, "slice"), slice);
  CHECK_EQUAL(detail(error, "row"), row);
  CHECK_EQUAL(detail(error, "col"), col);
}

}  // namespace

LAW("the first element that is not finite is reported, whatever the scheme and the number of threads") {
  TemporaryDirectory directory;
  constexpr uint64_t kRows = 1500, kCols = 700;
  // In another tile each; of one row, the later column comes first in scale blocks' order of work.
  write_file(directory / "file", bytes_of(matrix_with(kRows, kCols,
                                                      {{1400, 3, kNan}, {777, 650, kInfinity}, {777, 20, -kInfinity},
                                                       {776, 699, kNan}, {780, 0, kNan}})));
  for (const Scheme scheme : kEveryScheme) {
    for (const uint32_t threads : {1u, 8u}) {
      const LayerProgram program = f32_program(directory / "file", scheme, kRows, kCols);
      Bench bench(8 << 20, threads);
      for (int i = 0; i < 5; i++) {
        check_place(ERROR_OF(bench.run(program)), ErrorCode::non_finite, 0, 776, 699);
      }
    }
  }
}

LAW("the place is counted from the slice's first row, slices of all ops in the order of the program") {
  TemporaryDirectory directory;
  write_file(directory / "file", bytes_of(matrix_with(10, 4, {{6, 2, kNan}, {9, 1, kNan}})));
  LayerProgram program = {{planned(directory / "file")}, {}, {}, false};
  // Slice 0 ends in row 9 of the file and belongs to the second op; slice 2 holds row 6.
  program.slices = {contiguous(8 * 16, 2, 4, DType::f32), contiguous(0, 5, 4, DType::f32),
                    contiguous(5 * 16, 3, 4, DType::f32, 5)};
  Op first = filled(Scheme::none, DType::f32, 8, 4, 2);
  first.first_slice = 1;
  Op second = filled(Scheme::none, DType::f32, 2, 4, 1);
  second.out_offset = 256;
  program.ops = {first, second};
  Bench bench(512);
  check_place(ERROR_OF(bench.run(program)), ErrorCode::non_finite, 0, 1, 1);
  program.ops = {first};
  check_place(ERROR_OF(bench.run(program)), ErrorCode::non_finite, 2, 1, 2);
}

LAW("a finite value that overflows in rounding is not finite") {
  TemporaryDirectory directory;
  write_file(directory / "file", bytes_of(std::vector<float>{65519.0f, 65520.0f, -0x1.FFFFFEp127f}));
  LayerProgram program = f32_program(directory / "file", Scheme::none, 1, 3);
  Bench bench(512);
  bench.run(program);
  program.ops[0].out_dtype = program.ops[0].round_dtype = DType::f16;
  check_place(ERROR_OF(bench.run(program)), ErrorCode::non_finite, 0, 0, 1);
  program.ops[0].out_dtype = program.ops[0].round_dtype = DType::bf16;
  check_place(ERROR_OF(bench.run(program)), ErrorCode::non_finite, 0, 0, 2);
}

LAW("where they are allowed, a NaN becomes its code and an infinity counts as the largest value") {
  TemporaryDirectory directory;
  write_file(directory / "file", bytes_of(std::vector<float>{kInfinity, -kInfinity, kNan, -kNan, 1.0f, 0x1p127f}));
  const float largest = std::numeric_limits<float>::max();
  for (const Scheme scheme : {Scheme::fp8_tensor, Scheme::fp8_channel, Scheme::fp8_block}) {
    LayerProgram program = f32_program(directory / "file", scheme, 1, 6);
    program.allow_non_finite = true;
    Bench bench(512);
    bench.run(program);
    const ByteVector bytes = bench.staging();
    const uint8_t expected[] = {0x7E, 0xFE, 0x7F, 0xFF, 0x00, 0x76};
    for (int i = 0; i < 6; i++) CHECK_EQUAL(+bytes[i], +expected[i]);
    CHECK_EQUAL(value_at<float>(bytes, 256), scale_reference(scheme, largest));
  }
}

LAW("where they are allowed, a NaN is left out of the amax") {
  TemporaryDirectory directory;
  write_file(directory / "file", bytes_of(std::vector<float>{kNan, 2.0f, -4.48f}));
  for (const Scheme scheme : {Scheme::fp8_tensor, Scheme::fp8_channel, Scheme::fp8_block}) {
    LayerProgram program = f32_program(directory / "file", scheme, 1, 3);
    program.allow_non_finite = true;
    Bench bench(512);
    bench.run(program);
    CHECK_EQUAL(value_at<float>(bench.staging(), 256), scale_reference(scheme, 4.48f));
    CHECK_EQUAL(+bench.staging()[2], 0xFE);
  }
}

LAW("unquantized they keep their bits, or their sign when they are rounded") {
  TemporaryDirectory directory;
  const std::vector<uint32_t> bits = {0x7F800001u, 0xFFC12345u, 0x7F800000u, 0xFF800000u, 0x7F7FFFFFu, 0x3F800000u};
  write_file(directory / "file", bytes_of(bits));
  LayerProgram program = f32_program(directory / "file", Scheme::none, 1, 6);
  program.allow_non_finite = true;
  Bench bench(512);
  bench.run(program);
  for (size_t i = 0; i < bits.size(); i++) CHECK_EQUAL(value_at<uint32_t>(bench.staging(), 4 * i), bits[i]);
  program.ops[0].out_dtype = program.ops[0].round_dtype = DType::bf16;
  bench.run(program);
  const uint16_t rounded[] = {0x7FC0, 0xFFC0, 0x7F80, 0xFF80, 0x7F80, 0x3F80};
  for (size_t i = 0; i < 6; i++) CHECK_EQUAL(value_at<uint16_t>(bench.staging(), 2 * i), rounded[i]);
}

LAW("a scalar that must be positive is refused at zero, below it, and when it is not finite") {
  TemporaryDirectory directory;
  const std::pair<float, ErrorCode> refused[] = {{0.0f, ErrorCode::not_positive},
                                                 {-0.0f, ErrorCode::not_positive},
                                                 {-1.0f, ErrorCode::not_positive},
                                                 {kNan, ErrorCode::non_finite}};
  Bench bench(512);
  for (const auto& [value, code] : refused) {
    write_file(directory / "file", bytes_of(std::vector<float>{value}));
    LayerProgram program = f32_program(directory / "file", Scheme::none, 1, 1);
    program.ops[0].must_be_positive = true;
    check_place(ERROR_OF(bench.run(program)), code, 0, 0, 0);
  }
  write_file(directory / "file", bytes_of(std::vector<float>{0x1p-149f}));
  LayerProgram program = f32_program(directory / "file", Scheme::none, 1, 1);
  program.ops[0].must_be_positive = true;
  bench.run(program);
  CHECK_EQUAL(value_at<float>(bench.staging(), 0), 0x1p-149f);
}
