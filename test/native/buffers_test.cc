// Buffers hold what was packed into them and nothing else, and a program cannot tell them from a file.
#include "buffers.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <random>
#include <thread>

#include "check.h"
#include "host_memory.h"
#include "support.h"

using namespace layercast;
using namespace layercast::test;

namespace {

const auto kPage = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
constexpr uint64_t kLarge = 64 << 20;
constexpr int kAttempts = 20;

void check_code(const NativeError& error, ErrorCode code) {
  CHECK_EQUAL(error.code_name(), kErrorCodes[static_cast<size_t>(code)]);
}

bool says(const NativeError& error, const std::string& words) {
  return std::string(error.what()).find(words) != std::string::npos;
}

ByteVector random_bytes(std::mt19937_64& random, uint64_t bytes) {
  ByteVector made(bytes);
  for (uint8_t& byte : made) byte = static_cast<uint8_t>(random() | 1);  // none is zero
  return made;
}

Copy whole(const ProgramFile& file, uint64_t to_offset) {
  return {0, 0, file.size_bytes, 1, file.size_bytes, to_offset};
}

ByteVector bytes_at(const Buffers& buffers, uint64_t offset, uint64_t bytes) {
  std::ifstream file(buffers.file().path, std::ios::binary);
  file.seekg(static_cast<std::streamoff>(offset));
  ByteVector read(bytes);
  file.read(reinterpret_cast<char*>(read.data()), static_cast<std::streamsize>(bytes));
  CHECK_EQUAL(static_cast<uint64_t>(file.gcount()), bytes);
  return read;
}

/// A pool, and a file of bytes that are not zero.
struct FillBench {
  explicit FillBench(uint64_t file_bytes) : bytes(random_bytes(random, file_bytes)) {
    write_file(path, bytes);
    files = {planned(path)};
  }

  FillReport fill(const Buffers& buffers, const std::vector<Copy>& copies) {
    return fill_buffers(pool, buffers, files, copies, *cancel);
  }

  /// Calls `meanwhile` once the filling of kLarge bytes has begun; returns the error that it ended with, if it did.
  template <class Meanwhile>
  std::unique_ptr<NativeError> fill_large(const Buffers& buffers, const Meanwhile& meanwhile) {
    auto filling = std::async(std::launch::async, [&] { fill(buffers, {whole(files[0], 0)}); });
    while (buffers.held_bytes() == 0 && filling.wait_for(std::chrono::seconds(0)) != std::future_status::ready) {
      std::this_thread::yield();
    }
    meanwhile();
    try {
      filling.get();
    } catch (const NativeError& error) {
      return std::make_unique<NativeError>(error);
    }
    return nullptr;
  }

  TemporaryDirectory directory;
  std::string path = directory / "file";
  std::mt19937_64 random{7};
  ByteVector bytes;
  std::vector<ProgramFile> files;
  ThreadPool pool{3};
  std::unique_ptr<CancelToken> cancel = std::make_unique<CancelToken>();
};

/// Copies of random rows, packed one behind the other with gaps, and what the buffers must then hold.
struct RandomCopies {
  RandomCopies(std::mt19937_64& random, const std::vector<ByteVector>& files) {
    const auto up_to = [&](uint64_t most) { return random() % (most + 1); };
    for (int i = 0; i < 40; i++) {
      const uint64_t file = up_to(files.size() - 1);
      const uint64_t rows = 1 + up_to(30), row_bytes = 1 + up_to(i % 2 == 0 ? 50 : 20'000);
      const uint64_t gaps[] = {0, 1 + up_to(200), 8192 + up_to(5000)};  // together, read over, skipped
      const uint64_t stride = row_bytes + gaps[i % 3];
      const uint64_t extent = (rows - 1) * stride + row_bytes;
      if (extent > files[file].size()) continue;
      add(files, {file, up_to(files[file].size() - extent), stride, rows, row_bytes, 0});
      expected.resize(expected.size() + up_to(3) * 3000);
    }
  }

  void add(const std::vector<ByteVector>& files, Copy copy) {
    copy.to_offset = expected.size();
    for (uint64_t row = 0; row < copy.rows; row++) {
      const uint8_t* from = files[copy.file].data() + copy.offset + row * copy.row_stride;
      expected.insert(expected.end(), from, from + copy.row_bytes);
    }
    copies.push_back(copy);
  }

  std::vector<Copy> copies;
  ByteVector expected;
};

}  // namespace

LAW("what was packed is what the files had, whatever the rows, and around it there are zeros") {
  TemporaryDirectory directory;
  std::mt19937_64 random(1);
  ThreadPool pool(3);
  for (int round = 0; round < 10; round++) {
    std::vector<ByteVector> files;
    std::vector<ProgramFile> facts;
    for (const uint64_t bytes : {3 << 20, 100'000, 700'000}) {
      const std::string path = directory / std::to_string(files.size());
      files.push_back(random_bytes(random, bytes));
      write_file(path, files.back());
      facts.push_back(planned(path));
    }
    RandomCopies made(random, files);
    std::ranges::shuffle(made.copies, random);
    const Buffers buffers(made.expected.size() + 1000);
    const FillReport report = fill_buffers(pool, buffers, facts, made.copies, CancelToken());
    CHECK(bytes_at(buffers, 0, made.expected.size()) == made.expected);
    CHECK(report.bytes_read > 0 && report.read_ns > 0);
  }
}

LAW("rows larger than a thread's turn, and more of them than fit into one, are packed whole") {
  FillBench bench(24 << 20);
  const Buffers buffers(64 << 20);
  constexpr uint64_t kRow = (9 << 20) + 5, kShort = (1 << 20) + 3;
  CHECK_EQUAL(bench.fill(buffers, {{0, 1, kRow + 70'000, 2, kRow, 11}}).bytes_read, 2 * kRow);
  CHECK(bytes_at(buffers, 11 + kRow, kRow) == ByteVector(bench.bytes.begin() + 1 + kRow + 70'000,
                                                         bench.bytes.begin() + 1 + 2 * kRow + 70'000));
  CHECK_EQUAL(bench.fill(buffers, {{0, 2, kShort + 5000, 9, kShort, 40 << 20}}).bytes_read, 9 * kShort);
  for (uint64_t row = 0; row < 9; row++) {
    const auto from = bench.bytes.begin() + static_cast<ptrdiff_t>(2 + row * (kShort + 5000));
    CHECK(bytes_at(buffers, (40 << 20) + row * kShort, kShort) == ByteVector(from, from + kShort));
  }
}

LAW("only pages that were filled are held") {
  FillBench bench(3 * kPage);
  const Buffers buffers(uint64_t{1} << 40);
  CHECK_EQUAL(buffers.held_bytes(), 0u);
  bench.fill(buffers, {whole(bench.files[0], uint64_t{1} << 39)});
  CHECK_EQUAL(buffers.held_bytes(), 3 * kPage);
  bench.fill(buffers, {{0, 0, 2, 1, 2, 10 * kPage - 1}});  // a byte on each side
  CHECK_EQUAL(buffers.held_bytes(), 5 * kPage);
}

LAW("a copy of no bytes opens no file and holds nothing") {
  FillBench bench(100);
  const Buffers buffers(100);
  bench.files[0].path = bench.directory / "nothing";
  CHECK_EQUAL(bench.fill(buffers, {{0, 0, 0, 0, 10, 0}, {0, 100, 0, 10, 0, 100}}).bytes_read, 0u);
  CHECK_EQUAL(bench.fill(buffers, {}).bytes_read, 0u);
  CHECK_EQUAL(buffers.held_bytes(), 0u);
}

LAW("freeing gives back the pages within a range, keeps what is beside it, and the range can be filled again") {
  FillBench bench(8 * kPage);
  const Buffers buffers(8 * kPage);
  const Copy all = whole(bench.files[0], 0);
  bench.fill(buffers, {all});
  const Span spans[] = {{kPage / 2, 3 * kPage}, {6 * kPage, 0}, {6 * kPage, kPage}};
  buffers.free(spans);
  CHECK_EQUAL(buffers.held_bytes(), 5 * kPage);
  const uint64_t last = kPage / 2 + 3 * kPage;
  CHECK(bytes_at(buffers, 0, kPage / 2) == ByteVector(bench.bytes.begin(), bench.bytes.begin() + kPage / 2));
  CHECK(bytes_at(buffers, last, kPage) == ByteVector(bench.bytes.begin() + last, bench.bytes.begin() + last + kPage));
  CHECK(bytes_at(buffers, kPage, kPage) == ByteVector(kPage));
  bench.fill(buffers, {all});
  CHECK(bytes_at(buffers, 0, 8 * kPage) == bench.bytes);
  const Span outside[] = {{0, kPage}, {kPage, 7 * kPage + 1}};
  check_code(ERROR_OF(buffers.free(outside)), ErrorCode::invalid_argument);
  CHECK_EQUAL(buffers.held_bytes(), 8 * kPage);  // nothing of it was done
}

LAW("a program reads from buffers what it reads from the file that they were packed from") {
  constexpr uint64_t kRows = 64, kCols = 300, kStride = 4 * kCols + 6000, kTo = 5003;
  FillBench files(kRows * kStride);
  for (uint64_t i = 3; i < files.bytes.size(); i += 4) files.bytes[i] = 0x3f;  // finite
  write_file(files.path, files.bytes);
  files.files = {planned(files.path)};
  LayerProgram program = {files.files, {filled(Scheme::fp8_channel, DType::f8_e4m3, kRows, kCols)}, {}, false};
  program.slices = {{0, 8, kStride, kRows, kCols, DType::f32, 0, 4, -1}};
  Bench bench(1 << 16);
  const LayerReport from_file = bench.run(program);
  const ByteVector expected = bench.staging();

  const Buffers buffers(uint64_t{1} << 30);
  files.fill(buffers, {{0, 8, kStride, kRows, 4 * kCols, kTo}});
  program.files = {buffers.file()};
  program.slices = {contiguous(kTo, kRows, kCols, DType::f32)};
  bench.arena->close_staging();
  bench.arena->open_staging(*bench.pool, Where::device, true);
  CHECK_EQUAL(bench.run(program).digest, from_file.digest);
  CHECK(bench.staging() == expected);

  usleep(20'000);  // a file's time moves in steps of a few milliseconds
  const Span span = {0, buffers.size_bytes()};
  buffers.free({&span, 1});
  check_code(ERROR_OF(bench.run(program)), ErrorCode::source_changed);
}

LAW("copies that reach outside of their file or of the buffers, or write a byte twice, are refused by name") {
  FillBench bench(1000);
  const Buffers buffers(500);
  const Copy good = {0, 100, 40, 10, 20, 300};
  bench.fill(buffers, {good});
  const std::pair<void (*)(Copy&), const char*> spoilers[] = {
      {[](Copy& copy) { copy.file = 1; }, "copy 1: its file"},
      {[](Copy& copy) { copy.offset = 621; }, "copy 1 in its file: "},
      {[](Copy& copy) { copy.offset = uint64_t{1} << 52; }, "copy 1 in its file: "},
      {[](Copy& copy) { copy.row_stride = 19; }, "copy 1: its rows"},
      {[](Copy& copy) { copy.row_stride = uint64_t{1} << 52; }, "copy 1: "},
      {[](Copy& copy) { copy.row_stride = 98; }, "copy 1 in its file: "},
      {[](Copy& copy) { copy.rows = 11; }, "copy 1 in the buffers: "},
      {[](Copy& copy) { copy.rows = uint64_t{1} << 52; }, "copy 1: "},
      {[](Copy& copy) { copy.row_bytes = 21; }, "copy 1 in the buffers: "},
      {[](Copy& copy) { copy.row_bytes = uint64_t{1} << 52; }, "copy 1: "},
      {[](Copy& copy) { copy.to_offset = 301; }, "copy 1 in the buffers: "},
      {[](Copy& copy) { copy.to_offset = uint64_t{1} << 52; }, "copy 1 in the buffers: "},
      {[](Copy& copy) { copy.to_offset = 199; }, "twice"},
  };
  const Copy before = {0, 0, 20, 1, 20, 180};
  bench.fill(buffers, {before, good});
  for (const auto& [spoil, words] : spoilers) {
    Copy copy = good;
    spoil(copy);
    const NativeError error = ERROR_OF(bench.fill(buffers, {before, copy}));
    check_code(error, ErrorCode::invalid_argument);
    CHECK(says(error, words));
  }
  check_code(ERROR_OF(Buffers(0)), ErrorCode::invalid_argument);
}

LAW("numbers that are not numbers of a copy's field are refused by the field") {
  const std::vector<double> good = {0, 2, 8, 1, 4, 16};
  CHECK_EQUAL(copies_from_numbers(good).size(), 1u);
  for (size_t field = 0; field < good.size(); field++) {
    for (const double value : {-1.0, 0.5, 1e300, kNoConstant}) {
      std::vector<double> numbers = good;
      numbers[field] = value;
      const NativeError error = ERROR_OF(copies_from_numbers(numbers));
      check_code(error, ErrorCode::invalid_argument);
      CHECK(says(error, "copy 0: field " + std::to_string(field)));
    }
  }
  check_code(ERROR_OF(copies_from_numbers(std::span(good).first(5))), ErrorCode::invalid_argument);
}

LAW("a file that is missing is not found, one that is not as planned has changed, and nothing is held") {
  FillBench bench(1000);
  const Buffers buffers(5000);
  const std::vector<Copy> copies = {whole(bench.files[0], 0), {1, 0, 1000, 1, 1000, 1000}};
  for (const auto code : {ErrorCode::source_not_found, ErrorCode::source_changed}) {
    bench.files.resize(1);
    bench.files.push_back(bench.files[0]);
    if (code == ErrorCode::source_not_found) bench.files[1].path = bench.directory / "nothing";
    if (code == ErrorCode::source_changed) bench.files[1].inode++;
    const NativeError error = ERROR_OF(bench.fill(buffers, copies));
    check_code(error, code);
    CHECK_EQUAL(detail(error, "file"), 1.0);
  }
  CHECK_EQUAL(buffers.held_bytes(), 0u);
}

LAW("a file that is written to while it is packed has changed") {
  FillBench bench(kLarge);
  std::unique_ptr<NativeError> error;
  for (int attempt = 1; error == nullptr && attempt <= kAttempts; attempt++) {
    const Buffers buffers(kLarge);
    bench.files = {planned(bench.path)};
    error = bench.fill_large(buffers, [&] {
      const timespec times[] = {{attempt, 0}, {attempt, 0}};
      CHECK_EQUAL(utimensat(AT_FDCWD, bench.path.c_str(), times, 0), 0);
    });
  }
  CHECK(error != nullptr);
  if (error == nullptr) return;
  check_code(*error, ErrorCode::source_changed);
  CHECK_EQUAL(detail(*error, "file"), 0.0);
}

LAW("cancelling ends filling before it begins, or in the middle, and then nothing is written any more") {
  FillBench bench(kLarge);
  std::unique_ptr<NativeError> error;
  for (int attempt = 1; error == nullptr && attempt <= kAttempts; attempt++) {
    const Buffers buffers(kLarge);
    error = bench.fill_large(buffers, [&] { bench.cancel->cancel(); });
    const uint64_t held = buffers.held_bytes();
    usleep(1000);
    CHECK_EQUAL(buffers.held_bytes(), held);
    if (error != nullptr) CHECK(held < kLarge);
    if (error == nullptr) bench.cancel = std::make_unique<CancelToken>();
  }
  CHECK(error != nullptr);
  if (error != nullptr) check_code(*error, ErrorCode::cancelled);

  const Buffers buffers(kLarge);
  check_code(ERROR_OF(bench.fill(buffers, {whole(bench.files[0], 0)})), ErrorCode::cancelled);
  CHECK_EQUAL(buffers.held_bytes(), 0u);
}

LAW("more than this host has is refused before a page is taken, and so is more than a process can address") {
  FillBench bench(0);
  const uint64_t bytes = total_host_bytes() + kLarge;
  std::filesystem::resize_file(bench.path, bytes);
  bench.files = {planned(bench.path)};
  const Buffers buffers(bytes);
  const NativeError error = ERROR_OF(bench.fill(buffers, {whole(bench.files[0], 0)}));
  check_code(error, ErrorCode::out_of_memory);
  CHECK_EQUAL(detail(error, "bytes"), static_cast<double>(bytes));
  CHECK_EQUAL(buffers.held_bytes(), 0u);
  check_code(ERROR_OF(Buffers(uint64_t{1} << 52)), ErrorCode::out_of_memory);
}

LAW("pages that are held already need no room") {
  FillBench bench(4 * kPage);
  const uint64_t bytes = total_host_bytes() + kLarge;
  std::filesystem::resize_file(bench.path, bytes);
  bench.files = {planned(bench.path)};
  const Buffers buffers(bytes);
  bench.fill(buffers, {{0, 0, kPage, 1, kPage, kPage}, {0, 0, kPage, 1, kPage, 3 * kPage}});
  const NativeError error = ERROR_OF(bench.fill(buffers, {whole(bench.files[0], 0)}));
  CHECK_EQUAL(detail(error, "bytes"), static_cast<double>(bytes - 2 * kPage));
}

LAW("filling goes on in buffers that their owner has let go of, and the last to use them gives the memory back") {
  FillBench bench(kLarge);
  auto buffers = std::make_shared<Buffers>(kLarge);
  const ProgramFile facts = buffers->file();
  auto filled = std::async(std::launch::async, [&bench, used = buffers] {
    bench.fill(*used, {whole(bench.files[0], 0)});
    return bytes_at(*used, 0, kLarge) == bench.bytes;
  });
  buffers = nullptr;
  CHECK(filled.get());
  filled = {};  // with what the call held
  struct stat status;
  CHECK(stat(facts.path.c_str(), &status) == -1 || status.st_ino != facts.inode);
}
