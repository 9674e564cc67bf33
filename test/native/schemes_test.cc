// Whole programs of odd shapes through run_layer, against the recipes written down once more, slowly.
#include <random>

#include "check.h"
#include "digest.h"
#include "exchange.h"
#include "scheme_reference.h"
#include "support.h"

using namespace layercast;
using namespace layercast::test;

namespace {

double value_of(const ByteVector& file, uint64_t offset, DType dtype) {
  if (dtype == DType::bf16) return bf16_value(value_at<uint16_t>(file, offset));
  if (dtype == DType::f16) return f16_value(value_at<uint16_t>(file, offset));
  return value_at<float>(file, offset);
}

double rounded_to(double value, DType dtype) {
  if (dtype == DType::bf16) return nearest(value, kBf16);
  if (dtype == DType::f16) return nearest(value, kF16);
  return value;
}

/// The op's matrix after rounding, read element by element.
std::vector<float> matrix_of(const LayerProgram& program, const Op& op, const ByteVector& file) {
  std::vector<float> matrix(op.rows * op.cols, 0.0f);
  for (uint64_t i = op.first_slice; i < op.first_slice + op.slice_count; i++) {
    const Slice& slice = program.slices[i];
    for (uint64_t row = 0; row < slice.rows; row++) {
      for (uint64_t col = 0; col < slice.cols; col++) {
        const uint64_t at = slice.offset + row * slice.row_stride + col * dtype_bytes(slice.dtype);
        const double value = rounded_to(value_of(file, at, slice.dtype), op.round_dtype);
        matrix[(slice.to_row + row) * op.cols + col] = static_cast<float>(value);
      }
    }
  }
  return matrix;
}

void store_value(ByteVector& arena, uint64_t offset, float value, DType dtype) {
  if (dtype == DType::f32) {
    std::memcpy(&arena[offset], &value, 4);
  } else {
    const uint16_t half = dtype == DType::bf16 ? bf16_reference(value) : f16_reference(value);
    std::memcpy(&arena[offset], &half, 2);
  }
}

/// Writes what the op should have written.
void apply_reference(const LayerProgram& program, const Op& op, const ByteVector& file, ByteVector& arena) {
  const std::vector<float> matrix = matrix_of(program, op, file);
  std::vector<float> amax(scale_count(op), 0.0f);
  for (uint64_t i = 0; i < matrix.size() && !amax.empty(); i++) {
    float& greatest = amax[scale_index_reference(op.scheme, i / op.cols, i % op.cols, op.cols)];
    greatest = std::max(greatest, std::abs(matrix[i]));
  }
  for (uint64_t i = 0; i < matrix.size(); i++) {
    const uint64_t at = op.out_offset + i * dtype_bytes(op.out_dtype);
    if (op.scheme == Scheme::none) {
      store_value(arena, at, matrix[i], op.out_dtype);
      continue;
    }
    const float scale = scale_reference(op.scheme, amax[scale_index_reference(op.scheme, i / op.cols, i % op.cols, op.cols)]);
    arena[at] = code_reference(op.scheme, matrix[i], scale);
  }
  for (uint64_t i = 0; i < amax.size(); i++) {
    store_value(arena, static_cast<uint64_t>(op.scale_offset) + 4 * i, scale_reference(op.scheme, amax[i]), DType::f32);
  }
}

/// Elements of every size, from subnormals to large, all finite in the dtype and in F16.
ByteVector random_elements(uint64_t count, DType dtype, std::mt19937& random) {
  std::uniform_real_distribution<double> exponent(-30, 12);
  ByteVector bytes(count * dtype_bytes(dtype));
  for (uint64_t i = 0; i < count; i++) {
    const double value = random() % 16 == 0 ? 0.0 : std::exp2(exponent(random)) * (random() % 2 ? 1 : -1);
    store_value(bytes, i * dtype_bytes(dtype), static_cast<float>(value), dtype);
  }
  return bytes;
}

struct Case {
  Scheme scheme;
  DType source;
  DType round;
  std::vector<uint64_t> part_rows;
  uint64_t cols;
  uint64_t skipped_cols;  // between two rows of a slice, in the file
  uint64_t zero_rows;
  uint32_t threads;
};

std::string describe(const Case& one) {
  std::ostringstream text;
  text << "scheme " << static_cast<int>(one.scheme) << " source " << static_cast<int>(one.source) << " round "
       << static_cast<int>(one.round) << " parts " << one.part_rows.size() << " of " << one.part_rows[0] << " cols "
       << one.cols << " skipped " << one.skipped_cols << " zero rows " << one.zero_rows << " threads " << one.threads;
  return text.str();
}

LayerProgram program_of(const Case& one, const std::string& path) {
  const uint64_t element_bytes = dtype_bytes(one.source);
  const uint64_t stride = (one.cols + one.skipped_cols) * element_bytes;
  LayerProgram program = {{planned(path)}, {}, {}, false};
  uint64_t row = 0;
  for (const uint64_t rows : one.part_rows) {
    // Slices begin in the middle of the file's rows.
    const uint64_t offset = 24 + row * stride + one.skipped_cols / 2 * element_bytes;
    program.slices.push_back({0, offset, stride, rows, one.cols, one.source, row, element_bytes, -1});
    row += rows;
  }
  const DType kept = one.round == DType::none ? one.source : one.round;
  const DType out = one.scheme == Scheme::none ? kept : DType::f8_e4m3;
  Op op = filled(one.scheme, out, row + one.zero_rows, one.cols, program.slices.size());
  op.round_dtype = one.round;
  op.zero_rows = one.zero_rows;
  op.out_offset = 256;
  if (op.scheme != Scheme::none) op.scale_offset += 512;
  program.ops.push_back(op);
  return program;
}

uint64_t arena_bytes(const Op& op) {
  const uint64_t values = op.out_offset + op.rows * op.cols * dtype_bytes(op.out_dtype);
  return std::max(values, static_cast<uint64_t>(op.scale_offset + 1) + 4 * scale_count(op)) + 300;
}

std::vector<Span> written_spans(const Op& op) {
  std::vector<Span> spans = {{op.out_offset, op.rows * op.cols * dtype_bytes(op.out_dtype)}};
  if (op.scheme != Scheme::none) spans.push_back({static_cast<uint64_t>(op.scale_offset), 4 * scale_count(op)});
  return spans;
}

void check_case(const Case& one) {
  TemporaryDirectory directory;
  std::mt19937 random(static_cast<uint32_t>(one.cols + one.part_rows[0]));
  uint64_t rows = 0;
  for (const uint64_t part : one.part_rows) rows += part;
  ByteVector file(24);
  const ByteVector elements = random_elements(rows * (one.cols + one.skipped_cols), one.source, random);
  file.insert(file.end(), elements.begin(), elements.end());
  write_file(directory / "file", file);

  const LayerProgram program = program_of(one, directory / "file");
  const Op& op = program.ops[0];
  Bench bench(arena_bytes(op), one.threads);
  ByteVector expected(bench.arena->data_bytes(), 0xA5);
  apply_reference(program, op, file, expected);
  const LayerReport report = bench.run(program);
  const ByteVector actual = bench.staging();
  if (actual != expected) {
    const auto first = std::mismatch(actual.begin(), actual.end(), expected.begin()).first - actual.begin();
    report_failure(__FILE__, __LINE__, describe(one) + ": byte " + std::to_string(first) + " of the arena is wrong");
  }
  const std::vector<Span> spans = written_spans(op);
  CHECK_EQUAL(report.digest, digest_spans(*bench.pool, *bench.arena, Half::staging, spans, CancelToken()));
  CHECK_EQUAL(report.bytes_written, spans[0].bytes + (spans.size() > 1 ? spans[1].bytes : 0));
  CHECK(report.bytes_read >= rows * one.cols * dtype_bytes(one.source) * (is_measured(op.scheme) ? 2 : 1));
}

}  // namespace

LAW("every scheme makes the reference's bytes of odd shapes, parts and dtypes, and touches no other byte") {
  for (const Scheme scheme : kEveryScheme) {
    for (const DType source : {DType::bf16, DType::f16, DType::f32}) {
      for (const DType round : {DType::none, DType::bf16, DType::f16, DType::f32}) {
        check_case({scheme, source, round, {1}, 1, 0, 0, 1});
        check_case({scheme, source, round, {7, 3, 5}, 37, 0, 2, 2});
        check_case({scheme, source, round, {129, 60, 70}, 257, 11, 0, 3});
      }
    }
  }
}

LAW("a band of scale blocks may straddle parts and end in zero rows") {
  check_case({Scheme::fp8_block, DType::bf16, DType::none, {100, 100, 100}, 128, 0, 0, 2});
  check_case({Scheme::fp8_block, DType::bf16, DType::none, {1, 126, 2, 127}, 129, 0, 140, 2});
  check_case({Scheme::fp8_block, DType::f32, DType::none, {256}, 384, 0, 0, 8});
}

LAW("rows wider than a tile are cut where the scheme allows it") {
  check_case({Scheme::none, DType::bf16, DType::none, {3}, 300'001, 0, 0, 2});
  check_case({Scheme::none, DType::f32, DType::bf16, {2}, 300'001, 3, 1, 2});
  check_case({Scheme::fp8_tensor, DType::f16, DType::none, {2, 1}, 280'003, 5, 0, 2});
  check_case({Scheme::fp8_channel, DType::f32, DType::none, {3}, 140'001, 0, 0, 2});
  check_case({Scheme::fp8_block, DType::bf16, DType::none, {130, 10}, 8'500, 0, 0, 2});
  check_case({Scheme::fp8_block, DType::f32, DType::f16, {129}, 4'300, 77, 3, 8});
}

LAW("rows far apart in the file are read one by one, near ones together, with the same result") {
  for (const Scheme scheme : kEveryScheme) {
    check_case({scheme, DType::bf16, DType::none, {33, 21}, 64, 64, 0, 2});
    check_case({scheme, DType::bf16, DType::none, {33, 21}, 64, 5'000, 0, 2});
    check_case({scheme, DType::f32, DType::none, {200}, 700, 700, 9, 8});
  }
}

LAW("a matrix of zero rows alone, and constants, need no file") {
  LayerProgram program = {{}, {}, {}, false};
  Op zeros = filled(Scheme::fp8_channel, DType::f8_e4m3, 3, 5, 0);
  zeros.zero_rows = 3;
  Op constant = filled(Scheme::none, DType::f32, 1, 1, 0);
  constant.out_offset = 512;
  constant.constant = 1.0;
  Op half = filled(Scheme::none, DType::bf16, 1, 1, 0);
  half.out_offset = 768;
  half.constant = 0.3;
  program.ops = {zeros, constant, half};
  Bench bench(1024);
  bench.run(program);
  const ByteVector bytes = bench.staging();
  for (uint64_t i = 0; i < 15; i++) CHECK_EQUAL(+bytes[i], 0);
  CHECK_EQUAL(value_at<float>(bytes, 256), 1.0f / 229376.0f);
  CHECK_EQUAL(value_at<float>(bytes, 512), 1.0f);
  CHECK_EQUAL(value_at<uint16_t>(bytes, 768), bf16_reference(0.3f));
  CHECK_EQUAL(+bytes[770], 0xA5);
}

LAW("the scale of an all but empty tensor is 1, and of empty channels and blocks the least one") {
  TemporaryDirectory directory;
  write_file(directory / "file", bytes_of(std::vector<float>{0x1p-140f, -0x1p-149f, 0.0f, -0.0f}));
  const float scales[] = {1.0f, 1.0f / 229376.0f, 1e-4f * kReciprocalOf448};
  for (const Scheme scheme : {Scheme::fp8_tensor, Scheme::fp8_channel, Scheme::fp8_block}) {
    LayerProgram program = {{planned(directory / "file")}, {}, {contiguous(0, 1, 4, DType::f32)}, false};
    program.ops = {filled(scheme, DType::f8_e4m3, 1, 4)};
    Bench bench(512);
    bench.run(program);
    const ByteVector bytes = bench.staging();
    CHECK_EQUAL(value_at<float>(bytes, 256), scales[static_cast<int>(scheme) - 1]);
    CHECK_EQUAL(value_at<uint32_t>(bytes, 0), 0x80008000u);
  }
}
