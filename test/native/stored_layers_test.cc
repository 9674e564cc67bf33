// Whole programs whose slices are transposed on disk or of different dtypes, codes that are made values of, codes that are copied, and what is derived
// from what they wrote, at random, against the definitions written down once more, slowly.
#include <random>

#include "check.h"
#include "cpu/vector_code.h"
#include "exchange.h"
#include "scheme_reference.h"
#include "support.h"

using namespace layercast;
using namespace layercast::test;

namespace {

double value_of(const ByteVector& bytes, uint64_t at, DType dtype) {
  if (dtype == DType::bf16) return bf16_value(value_at<uint16_t>(bytes, at));
  if (dtype == DType::f16) return f16_value(value_at<uint16_t>(bytes, at));
  if (dtype == DType::f8_e4m3) return e4m3_value(bytes[at]);
  if (dtype == DType::f8_e8m0) return std::ldexp(1.0, bytes[at] - 127);
  return value_at<float>(bytes, at);
}

double rounded_to(double value, DType dtype) {
  if (dtype == DType::bf16) return nearest(value, kBf16);
  return dtype == DType::f16 ? nearest(value, kF16) : value;
}

void store(ByteVector& bytes, uint64_t at, float value, DType dtype) {
  if (dtype == DType::f32) {
    std::memcpy(&bytes[at], &value, 4);
  } else {
    const uint16_t half = dtype == DType::bf16 ? bf16_reference(value) : f16_reference(value);
    std::memcpy(&bytes[at], &half, 2);
  }
}

/// An element of a slice, made a value of and rounded as the op wants it.
float element_of(const LayerProgram& program, const Op& op, const Slice& slice, uint64_t row, uint64_t col,
                 const ByteVector& file) {
  double value = value_of(file, slice.offset + row * slice.row_stride + col * slice.col_stride, slice.dtype);
  if (slice.scale >= 0) {
    const ScaleMatrix& scales = program.scales[static_cast<size_t>(slice.scale)];
    const uint64_t at = scales.offset + (scales.first_row + row) / scales.block_rows * scales.row_stride +
                        (scales.first_col + col) / scales.block_cols * dtype_bytes(scales.dtype);
    value = static_cast<float>(value) * static_cast<float>(value_of(file, at, scales.dtype));
  }
  return static_cast<float>(rounded_to(value, op.round_dtype));
}

void apply_op(const LayerProgram& program, const Op& op, const ByteVector& file, ByteVector& arena) {
  std::vector<float> matrix(op.rows * op.cols, 0.0f);
  if (op.out_dtype == DType::f8_e4m3) std::fill_n(arena.begin() + static_cast<int64_t>(op.out_offset), matrix.size(), 0);
  for (uint64_t i = op.first_slice; i < op.first_slice + op.slice_count; i++) {
    const Slice& slice = program.slices[i];
    for (uint64_t row = 0; row < slice.rows; row++) {
      for (uint64_t col = 0; col < slice.cols; col++) {
        const uint64_t to = (slice.to_row + row) * op.cols + col;
        matrix[to] = element_of(program, op, slice, row, col, file);
        if (op.out_dtype == DType::f8_e4m3 && op.scheme == Scheme::none) {
          arena[op.out_offset + to] = file[slice.offset + row * slice.row_stride + col * slice.col_stride];
        }
      }
    }
  }
  if (op.scheme == Scheme::none) {
    for (uint64_t i = 0; i < matrix.size() && op.out_dtype != DType::f8_e4m3; i++) {
      store(arena, op.out_offset + i * dtype_bytes(op.out_dtype), matrix[i], op.out_dtype);
    }
    return;
  }
  std::vector<float> scales(scale_count(op), 0.0f);
  const auto scale_at = [&](uint64_t i) -> float& {
    return scales[scale_index_reference(op.scheme, i / op.cols, i % op.cols, op.cols)];
  };
  for (uint64_t i = 0; i < matrix.size(); i++) scale_at(i) = std::max(scale_at(i), std::abs(matrix[i]));
  for (float& scale : scales) scale = scale_reference(op.scheme, scale);
  for (uint64_t i = 0; i < matrix.size(); i++) {
    arena[op.out_offset + i] = code_reference(op.scheme, matrix[i], scale_at(i));
  }
  std::memcpy(&arena[static_cast<uint64_t>(op.scale_offset)], scales.data(), 4 * scales.size());
}

void apply_derived(const Derived& derived, ByteVector& arena) {
  const uint64_t size = dtype_bytes(derived.out_dtype);
  for (uint64_t i = 0; i < derived.heads * derived.rows * derived.cols; i++) {
    const uint64_t head = i / (derived.rows * derived.cols), row = i / derived.cols % derived.rows;
    const uint64_t col = i % derived.cols;
    const uint64_t held = head * derived.head_rows + derived.first_row + row;
    const uint64_t from = derived.weight_offset + (held * derived.cols + col) * dtype_bytes(derived.weight_dtype);
    const uint64_t in_head = derived.transposed ? col * derived.rows + row : row * derived.cols + col;
    const uint64_t to = derived.out_offset + (head * derived.rows * derived.cols + in_head) * size;
    if (derived.scheme == Scheme::none) {
      std::copy_n(arena.begin() + static_cast<int64_t>(from), size, arena.begin() + static_cast<int64_t>(to));
      continue;
    }
    const float scale = value_at<float>(arena, static_cast<uint64_t>(derived.scale_offset) +
                                                   4 * scale_index_reference(derived.scheme, held, col, derived.cols));
    const float product = static_cast<float>(e4m3_value(arena[from])) * scale;
    store(arena, to, static_cast<float>(rounded_to(product, derived.out_dtype)), derived.out_dtype);
  }
}

uint64_t below(std::mt19937& random, uint64_t limit) { return random() % limit; }

/// A file under construction; everything in it begins where it happens to.
struct Writer {
  ByteVector bytes = ByteVector(13, 0xEE);

  uint64_t add_codes(std::mt19937& random, uint64_t count) {
    const uint64_t at = bytes.size() + below(random, 5);
    bytes.resize(at + count + 3);
    for (uint64_t i = 0; i < count; i++) {
      bytes[at + i] = static_cast<uint8_t>(random());
      if ((bytes[at + i] & 0x7F) == 0x7F) bytes[at + i] ^= 1;
    }
    return at;
  }
  /// Exponents from 2^least up to 2^most.
  uint64_t add_exponents(std::mt19937& random, uint64_t count, int least, int most) {
    const uint64_t at = bytes.size() + below(random, 5);
    bytes.resize(at + count + 3);
    const auto range = static_cast<uint64_t>(most - least + 1);
    for (uint64_t i = 0; i < count; i++) bytes[at + i] = static_cast<uint8_t>(127 + least + static_cast<int>(below(random, range)));
    return at;
  }
  uint64_t add_values(std::mt19937& random, uint64_t count, DType dtype, double least, double most) {
    const uint64_t at = bytes.size() + below(random, 5);
    bytes.resize(at + count * dtype_bytes(dtype) + 3);
    std::uniform_real_distribution<double> exponent(least, most);
    for (uint64_t i = 0; i < count; i++) {
      const double value = std::exp2(exponent(random)) * (random() % 2 ? 1 : -1);
      store(bytes, at + i * dtype_bytes(dtype), static_cast<float>(value), dtype);
    }
    return at;
  }
};

/// A slice somewhere inside of a matrix on disk that is larger than it.
Slice add_slice(Writer& writer, std::mt19937& random, uint64_t rows, uint64_t cols, DType dtype, bool transposed,
                uint64_t gap) {
  const uint64_t lines = transposed ? cols : rows, length = (transposed ? rows : cols) + gap;
  const uint64_t size = dtype_bytes(dtype);
  const uint64_t at = dtype == DType::f8_e4m3   ? writer.add_codes(random, lines * length)
                      : dtype == DType::f8_e8m0 ? writer.add_exponents(random, lines * length, -20, 6)
                                                : writer.add_values(random, lines * length, dtype, -20, 6);
  const uint64_t offset = at + below(random, gap + 1) * size;
  return {0, offset, transposed ? size : length * size, rows, cols, dtype, 0, transposed ? length * size : size, -1};
}

constexpr DType kScaleDTypes[] = {DType::bf16, DType::f16, DType::f32, DType::f8_e8m0};

ScaleMatrix add_scales(Writer& writer, std::mt19937& random, const Slice& slice) {
  const uint64_t sides[] = {1, 2, 7, 64, 128, 100'000};
  ScaleMatrix scales = {0, 0, 0, kScaleDTypes[below(random, 4)], sides[below(random, 6)], sides[below(random, 6)],
                        below(random, 300), below(random, 300)};
  const uint64_t rows = (scales.first_row + slice.rows - 1) / scales.block_rows + 1;
  const uint64_t cols = (scales.first_col + slice.cols - 1) / scales.block_cols + 1 + below(random, 3);
  scales.row_stride = cols * dtype_bytes(scales.dtype);
  scales.offset = scales.dtype == DType::f8_e8m0 ? writer.add_exponents(random, rows * cols, -6, 2)
                                                 : writer.add_values(random, rows * cols, scales.dtype, -6, 2);
  return scales;
}

uint64_t aligned(uint64_t offset) { return ceil_div(offset, 64) * 64; }

struct Made {
  LayerProgram program;
  uint64_t arena_bytes;
  std::vector<Span> spans;
};

Made random_program(const std::string& path, uint32_t seed) {
  std::mt19937 random(seed);
  Writer writer;
  Made made = {{{}, {}, {}, false}, 64, {}};
  LayerProgram& program = made.program;
  const uint64_t ops = 1 + below(random, 3);
  for (uint64_t i = 0; i < ops; i++) {
    const auto scheme = static_cast<Scheme>(below(random, 4));
    const int kind = static_cast<int>(below(random, scheme == Scheme::none ? 3 : 2));  // values, dequantized, copied
    const DType source = kind == 0 ? kScaleDTypes[below(random, 4)] : DType::f8_e4m3;
    DType round = kind == 2 ? DType::none : static_cast<DType>(static_cast<int>(below(random, 4)) - 1);
    const bool mixed = kind == 0 && below(random, 3) == 0;  // slices of different dtypes
    const uint64_t heads = 1 + below(random, 3), head_rows = 1 + below(random, 140), cols = 1 + below(random, 300);
    const uint64_t rows = heads * head_rows;
    DType out = kind == 2 || scheme != Scheme::none ? DType::f8_e4m3 : static_cast<DType>(below(random, 3));
    if (scheme == Scheme::none && kind != 2 && round != DType::none) out = random() % 3 == 0 ? DType::f32 : round;
    Op op = filled(scheme, out, rows, cols);
    op.round_dtype = round;
    op.first_slice = program.slices.size();
    op.zero_rows = below(random, 4) == 0 ? below(random, rows) : 0;
    op.zero_cols = below(random, 4) == 0 ? below(random, cols) : 0;
    op.slice_count = 0;
    uint64_t zeros = op.zero_rows;  // between slices, or after the last
    for (uint64_t row = 0; row + zeros < rows;) {
      const uint64_t skipped = below(random, zeros + 1);
      zeros -= skipped;
      row += skipped;
      const uint64_t some = 1 + below(random, rows - zeros - row);
      const bool transposed = random() % 2 != 0;
      const DType dtype = mixed ? static_cast<DType>(below(random, 3)) : source;
      Slice slice = add_slice(writer, random, some, cols - op.zero_cols, dtype, transposed,
                              below(random, 2) * below(random, 90));
      slice.to_row = row;
      if (kind == 1) {
        slice.scale = static_cast<int64_t>(program.scales.size());
        program.scales.push_back(add_scales(writer, random, slice));
      }
      program.slices.push_back(slice);
      op.slice_count++;
      row += some;
    }
    op.out_offset = made.arena_bytes + below(random, 40) * dtype_bytes(out);
    made.spans.push_back({op.out_offset, rows * cols * dtype_bytes(out)});
    made.arena_bytes = aligned(op.out_offset + made.spans.back().bytes);
    if (scheme != Scheme::none) {
      op.scale_offset = static_cast<int64_t>(made.arena_bytes + 4 * below(random, 9));
      made.spans.push_back({static_cast<uint64_t>(op.scale_offset), 4 * scale_count(op)});
      made.arena_bytes = aligned(made.spans.back().offset + made.spans.back().bytes);
    }
    program.ops.push_back(op);
    if (kind == 2) continue;  // copied codes have no scales here
    const DType derived_out = scheme == Scheme::none ? out : static_cast<DType>(below(random, 3));
    const uint64_t first = below(random, head_rows);
    const uint64_t taken = 1 + below(random, head_rows - first);
    Derived derived = {scheme, op.out_offset, out, op.scale_offset, 0, derived_out, heads, head_rows, first, taken, cols,
                       random() % 2 != 0};
    derived.out_offset = made.arena_bytes + below(random, 40) * dtype_bytes(derived_out);
    made.spans.push_back({derived.out_offset, heads * taken * cols * dtype_bytes(derived_out)});
    made.arena_bytes = aligned(derived.out_offset + made.spans.back().bytes);
    program.derived.push_back(derived);
  }
  made.arena_bytes += 300;
  write_file(path, writer.bytes);
  program.files = {planned(path)};
  return made;
}

}  // namespace

LAW("random programs of transposed and mixed slices, codes and what is derived make the reference's bytes, and touch no other") {
  for (uint32_t seed = 0; seed < (deep() ? 400u : 100u); seed++) {
    TemporaryDirectory directory;
    const Made made = random_program(directory / "file", seed);
    const ByteVector file = read_file(directory / "file");
    Bench bench(made.arena_bytes, 1 + seed % 3);
    ByteVector expected(made.arena_bytes, 0xA5);
    for (const Op& op : made.program.ops) apply_op(made.program, op, file, expected);
    for (const Derived& derived : made.program.derived) apply_derived(derived, expected);
    const LayerReport report = bench.run(made.program);
    const ByteVector actual = bench.staging();
    if (actual != expected) {
      const auto first = std::mismatch(actual.begin(), actual.end(), expected.begin()).first - actual.begin();
      const std::string what = "seed " + std::to_string(seed) + ": byte " + std::to_string(first) + " is wrong";
      report_failure(__FILE__, __LINE__, what);
    }
    uint64_t bytes = 0;
    for (const Span& span : made.spans) bytes += span.bytes;
    CHECK_EQUAL(report.bytes_written, bytes);
    CHECK_EQUAL(report.digest, digest_spans(*bench.pool, *bench.arena, Half::staging, made.spans, CancelToken()));
  }
}

LAW("tall transposed matrices, cut into many tiles and read in many pieces, are what they are when turned") {
  constexpr uint64_t kShapes[][3] = {{3000, 2100, 0}, {1100, 5000, 5000}, {600'001, 5, 0}};
  for (size_t at = 0; at < kEveryScheme.size(); at++) {
    const Scheme scheme = kEveryScheme[at];
    for (size_t shape = 0; shape < std::size(kShapes); shape++) {
      if (shape != at % std::size(kShapes) && !deep()) continue;
      const auto& [rows, cols, gap] = kShapes[shape];
      TemporaryDirectory directory;
      std::mt19937 random(static_cast<uint32_t>(rows));
      Writer writer;
      LayerProgram program = {{}, {}, {}, false};
      program.slices = {add_slice(writer, random, rows, cols, DType::bf16, true, gap)};
      write_file(directory / "file", writer.bytes);
      program.files = {planned(directory / "file")};
      program.ops = {filled(scheme, scheme == Scheme::none ? DType::bf16 : DType::f8_e4m3, rows, cols)};
      const uint64_t bytes = rows * cols * 2 + 4 * scale_count(program.ops[0]) + 4096;
      Bench bench(bytes, 2);
      ByteVector expected(bytes, 0xA5);
      apply_op(program, program.ops[0], writer.bytes, expected);
      bench.run(program);
      CHECK(bench.staging() == expected);
    }
  }
}

LAW("vector codes decode every code alike under scales of every kind, at any length, and find the greatest code") {
  ByteVector codes(256 + 100);
  for (size_t i = 0; i < codes.size(); i++) codes[i] = static_cast<uint8_t>(i * 37);
  const float odd[] = {1.0f, -1.0f, 0.0f, 0x1p-149f, 0x1p-130f, 0x1.FFFFFEp127f, 0.0123f, INFINITY, -INFINITY, NAN};
  for (const VectorCode* code : available_vector_codes()) {
    for (const float scale : odd) {
      for (uint64_t count = 0; count <= codes.size(); count += count < 70 ? 1 : 41) {
        std::vector<float> got(codes.size() + 16, 3.0f), want(codes.size() + 16, 3.0f);
        code->decode(codes.data() + 1, std::min<uint64_t>(count, codes.size() - 1), scale, got.data());
        for (uint64_t i = 0; i < std::min<uint64_t>(count, codes.size() - 1); i++) {
          const float value = static_cast<float>(e4m3_value(codes[i + 1])) * scale;
          want[i] = std::isnan(value) ? std::copysign(NAN, codes[i + 1] & 0x80 ? -1.0f : 1.0f) : value;
        }
        CHECK(std::memcmp(got.data(), want.data(), got.size() * 4) == 0);
      }
    }
    for (uint64_t count = 1; count < 200; count++) {
      uint32_t greatest = 0;
      for (uint64_t i = 0; i < count; i++) greatest = std::max<uint32_t>(greatest, codes[i + 3] & 0x7F);
      CHECK_EQUAL(code->greatest({codes.data() + 3, DType::f8_e4m3, 1, count, count}), greatest);
    }
  }
}

LAW("every E8M0 exponent is its power of two, as a value and as a scale, and 0xFF is not finite") {
  TemporaryDirectory directory;
  ByteVector file(256 + 256, 0x38);  // exponents, then codes of 1
  for (size_t i = 0; i < 256; i++) file[i] = static_cast<uint8_t>(i);
  write_file(directory / "file", file);
  const Slice values = contiguous(0, 256, 1, DType::f8_e8m0);
  Slice codes = contiguous(256, 256, 1, DType::f8_e4m3);
  codes.scale = 0;
  LayerProgram program = {{planned(directory / "file")}, {filled(Scheme::none, DType::f32, 256, 1)}, {}, false};
  program.scales = {{0, 0, 1, DType::f8_e8m0, 1, 1, 0, 0}};
  for (const Slice& slice : {values, codes}) {
    program.slices = {slice};
    program.allow_non_finite = false;
    Bench bench(4096);
    const NativeError error = ERROR_OF(bench.run(program));
    CHECK_EQUAL(error.code_name(), "NATIVE_NON_FINITE");
    CHECK_EQUAL(detail(error, "row"), 255.0);
    program.allow_non_finite = true;
    bench.run(program);
    for (int i = 0; i < 255; i++) {
      CHECK_EQUAL(value_at<float>(bench.staging(), 4 * static_cast<uint64_t>(i)), std::ldexp(1.0f, i - 127));
    }
    CHECK(std::isnan(value_at<float>(bench.staging(), 4 * 255)));
  }
}

LAW("scales that must agree do so by value, an exponent with a number too") {
  TemporaryDirectory directory;
  ByteVector file(8, 0);
  const float quarter = 0.25f;
  std::memcpy(file.data(), &quarter, 4);
  file[4] = 125;
  file[5] = 126;
  write_file(directory / "file", file);
  LayerProgram program = {{planned(directory / "file")}, {filled(Scheme::none, DType::f32, 1, 1)}, {}, false};
  program.slices = {contiguous(4, 1, 1, DType::f8_e8m0), contiguous(0, 1, 1, DType::f32)};
  program.agreements = {{0, 1}};
  Bench bench(4096);
  bench.run(program);
  CHECK_EQUAL(value_at<float>(bench.staging(), 0), 0.25f);
  program.slices[0].offset = 5;
  CHECK_EQUAL(ERROR_OF(bench.run(program)).code_name(), "NATIVE_SCALES_DIFFER");
}

LAW("a copied code that is NaN is not finite, wherever it stands, and is copied where that is allowed") {
  for (const uint64_t place : {0u, 1u, 63u, 5000u, 69'999u}) {
    TemporaryDirectory directory;
    ByteVector file(70'000, 0x38);
    file[place] = place % 2 ? 0xFF : 0x7F;
    write_file(directory / "file", file);
    LayerProgram program = {{planned(directory / "file")}, {}, {contiguous(0, 700, 100, DType::f8_e4m3)}, false};
    program.ops = {filled(Scheme::none, DType::f8_e4m3, 700, 100)};
    Bench bench(70'656);
    const NativeError error = ERROR_OF(bench.run(program));
    CHECK_EQUAL(error.code_name(), "NATIVE_NON_FINITE");
    CHECK_EQUAL(detail(error, "row"), static_cast<double>(place / 100));
    CHECK_EQUAL(detail(error, "col"), static_cast<double>(place % 100));
    program.allow_non_finite = true;
    bench.run(program);
    CHECK_EQUAL(+bench.staging()[place], +file[place]);
  }
}

LAW("what is derived must have elements, lie within the arena, and not lie where it is made from") {
  LayerProgram good = {{}, {}, {}, false};
  good.derived = {{Scheme::fp8_block, 0, DType::f8_e4m3, 4096, 8192, DType::bf16, 2, 10, 3, 7, 100, true}};
  check_program(good, 8192 + 2 * 7 * 100 * 2);
  CHECK_EQUAL(ERROR_OF(check_program(good, 8192 + 2 * 7 * 100 * 2 - 1)).code_name(), "NATIVE_INVALID_ARGUMENT");
  const std::vector<void (*)(Derived&)> spoilers = {
      [](Derived& derived) { derived.rows = 8; },
      [](Derived& derived) { derived.first_row = 11; },
      [](Derived& derived) { derived.first_row = uint64_t{1} << 53; },
      [](Derived& derived) { derived.heads = uint64_t{1} << 52; },
      [](Derived& derived) { derived.cols = uint64_t{1} << 52; },
      [](Derived& derived) { derived.heads = 0; },
      [](Derived& derived) { derived.rows = 0; },
      [](Derived& derived) {
        derived.heads = uint64_t{1} << 53;  // heads of nothing take no room, and for ever
        derived.head_rows = derived.first_row = derived.rows = 0;
      },
      [](Derived& derived) { derived.out_offset = 0; },
      [](Derived& derived) { derived.out_offset = 8193; },
      [](Derived& derived) { derived.out_offset = 4092; },
      [](Derived& derived) { derived.scale_offset = -1; },
      [](Derived& derived) { derived.scale_offset = 4097; },
      [](Derived& derived) { derived.scheme = Scheme::none; },
      [](Derived& derived) { derived.weight_dtype = DType::bf16; },
      [](Derived& derived) { derived.out_dtype = DType::f8_e4m3; },
      [](Derived& derived) { derived.out_dtype = DType::u8; },
      [](Derived& derived) { derived.weight_offset = uint64_t{1} << 53; },
  };
  for (size_t i = 0; i < spoilers.size(); i++) {
    LayerProgram program = good;
    spoilers[i](program.derived[0]);
    const NativeError error = ERROR_OF(check_program(program, 16'384));
    if (error.code == ErrorCode::invalid_argument) continue;
    report_failure(__FILE__, __LINE__, "spoiler " + std::to_string(i));
  }
}
