// Checkpoint files that are not what the plan says, and programs that would reach outside of what they were given.
#include "source.h"

#include <fcntl.h>

#include "check.h"
#include "support.h"

using namespace layercast;
using namespace layercast::test;

namespace {

constexpr uint64_t kRows = 100, kCols = 64;

LayerProgram copy_program(const std::string& path) {
  LayerProgram program = {{planned(path)}, {}, {contiguous(0, kRows, kCols, DType::f32)}, false};
  program.ops = {filled(Scheme::none, DType::f32, kRows, kCols)};
  return program;
}

constexpr Tile kWhole = {0, 0, kRows, 0, kCols};

void check_code(const NativeError& error, ErrorCode code) {
  CHECK_EQUAL(error.code_name(), kErrorCodes[static_cast<size_t>(code)]);
}

struct SourceBench {
  SourceBench() { write_file(path, ByteVector(kRows * kCols * 4)); }

  TemporaryDirectory directory;
  std::string path = directory / "file";
  ByteVector buffer = ByteVector(kRows * kCols * 4);
};

}  // namespace

LAW("a file that is missing is not found; one of another size, time or inode has changed") {
  SourceBench bench;
  LayerProgram program = copy_program(bench.path);
  program.files[0].path = bench.directory / "nothing";
  check_code(ERROR_OF(SourceFiles files(program, nothing_pinned())), ErrorCode::source_not_found);

  program = copy_program(bench.path);
  program.files[0].mtime_ns += 1;
  check_code(ERROR_OF(SourceFiles files(program, nothing_pinned())), ErrorCode::source_changed);

  program = copy_program(bench.path);
  program.files[0].inode += 1;
  check_code(ERROR_OF(SourceFiles files(program, nothing_pinned())), ErrorCode::source_changed);

  program = copy_program(bench.path);
  program.files[0].size_bytes += 1;
  const NativeError error = ERROR_OF(SourceFiles files(program, nothing_pinned()));
  check_code(error, ErrorCode::source_changed);
  CHECK_EQUAL(detail(error, "file"), 0.0);
}

LAW("a directory or a pipe in a file's place has changed, and hangs nobody") {
  SourceBench bench;
  LayerProgram program = copy_program(bench.path);
  std::filesystem::remove(bench.path);
  CHECK_EQUAL(mkfifo(bench.path.c_str(), 0600), 0);
  check_code(ERROR_OF(SourceFiles files(program, nothing_pinned())), ErrorCode::source_changed);
  program.files[0].path = bench.directory / ".";
  check_code(ERROR_OF(SourceFiles files(program, nothing_pinned())), ErrorCode::source_changed);
}

LAW("a file cut short after it was opened is an error of the read, not a signal") {
  SourceBench bench;
  const LayerProgram program = copy_program(bench.path);
  const SourceFiles files(program, nothing_pinned());
  CHECK_EQUAL(files.read_tile(kWhole, bench.buffer.data()), kRows * kCols * 4);
  std::filesystem::resize_file(bench.path, 1000);
  check_code(ERROR_OF(files.read_tile(kWhole, bench.buffer.data())), ErrorCode::source_changed);
  check_code(ERROR_OF(files.check_unchanged()), ErrorCode::source_changed);
}

LAW("a file written to, replaced or deleted after it was opened is found when the reading is over") {
  {
    SourceBench bench;
    const LayerProgram program = copy_program(bench.path);
    const SourceFiles files(program, nothing_pinned());
    files.check_unchanged();
    const timespec times[] = {{1, 0}, {1, 0}};
    CHECK_EQUAL(utimensat(AT_FDCWD, bench.path.c_str(), times, 0), 0);
    check_code(ERROR_OF(files.check_unchanged()), ErrorCode::source_changed);
  }
  {
    SourceBench bench;
    const LayerProgram program = copy_program(bench.path);
    const SourceFiles files(program, nothing_pinned());
    std::filesystem::rename(bench.path, bench.directory / "old");
    check_code(ERROR_OF(files.check_unchanged()), ErrorCode::source_changed);
    std::filesystem::copy_file(bench.directory / "old", bench.path);
    check_code(ERROR_OF(files.check_unchanged()), ErrorCode::source_changed);
  }
}

LAW("a file of the program that no slice names is not opened") {
  SourceBench bench;
  LayerProgram program = copy_program(bench.path);
  program.files.push_back({bench.directory / "nothing", 1, 1, 1});
  SourceFiles(program, nothing_pinned()).check_unchanged();
}

LAW("a program that reaches outside of its files or of the arena is refused") {
  SourceBench bench;
  const LayerProgram good = copy_program(bench.path);
  const uint64_t data_bytes = kRows * kCols * 4;
  check_program(good, data_bytes);
  check_code(ERROR_OF(check_program(good, data_bytes - 1)), ErrorCode::invalid_argument);

  const std::vector<void (*)(LayerProgram&)> spoilers = {
      [](LayerProgram& program) { program.slices[0].offset = 4; },
      [](LayerProgram& program) { program.slices[0].file = 1; },
      [](LayerProgram& program) { program.slices[0].row_stride = kCols * 4 - 4; },
      [](LayerProgram& program) { program.slices[0].row_stride = uint64_t{1} << 52; },
      [](LayerProgram& program) { program.slices[0].rows = uint64_t{1} << 52; },
      [](LayerProgram& program) { program.slices[0].dtype = DType::f8_e4m3; },
      [](LayerProgram& program) { program.slices[0].to_row = 1; },
      [](LayerProgram& program) { program.slices[0].cols = 1; },
      [](LayerProgram& program) { program.ops[0].out_offset = 2; },
      [](LayerProgram& program) { program.ops[0].first_slice = 1; },
      [](LayerProgram& program) { program.ops[0].slice_count = 2; },
      [](LayerProgram& program) { program.ops[0].zero_rows = 1; },
      [](LayerProgram& program) { program.ops[0].zero_rows = kRows + 1; },
      [](LayerProgram& program) { program.ops[0].zero_cols = 1; },
      [](LayerProgram& program) { program.ops[0].zero_cols = kCols + 1; },
      [](LayerProgram& program) {
        program.ops[0].zero_rows = 1;
        program.slices[0].rows--;
        program.slices[0].to_row = 2;  // ends below the last row
      },
      [](LayerProgram& program) { program.ops[0].constant = 1; },
      [](LayerProgram& program) { program.ops[0].out_dtype = DType::f8_e4m3; },
      [](LayerProgram& program) { program.ops[0].round_dtype = DType::u8; },
      [](LayerProgram& program) { program.ops[0].scale_offset = 0; },
      [](LayerProgram& program) { program.ops[0].scheme = Scheme::fp8_channel; },
  };
  for (const auto& spoil : spoilers) {
    LayerProgram program = good;
    spoil(program);
    check_code(ERROR_OF(check_program(program, data_bytes)), ErrorCode::invalid_argument);
  }
}

LAW("numbers that are not numbers of their field are refused") {
  const double nan = kNoConstant;
  const std::vector<double> good = {0, 2, -1, 1, 1, 0, -1, 0, 0, 0, 0, nan, 1};
  CHECK_EQUAL(ops_from_numbers(good).size(), 1u);
  const std::pair<size_t, double> spoilers[] = {{0, kSchemes.size()}, {0, -1}, {1, 5}, {2, -2}, {3, 0.5}, {3, -1}, {4, nan},
                                                {5, 1e300},
                                                {6, -2}, {12, 2}};
  for (const auto& [field, value] : spoilers) {
    std::vector<double> numbers = good;
    numbers[field] = value;
    check_code(ERROR_OF(ops_from_numbers(numbers)), ErrorCode::invalid_argument);
  }
  check_code(ERROR_OF(ops_from_numbers(std::span(good).first(12))), ErrorCode::invalid_argument);
}
