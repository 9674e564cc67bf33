// Devices that are opened: what they say of themselves, what fails on them, and arenas of which another process holds
// the live half. All on the stand-in device.
#include "device.h"

#include <algorithm>
#include <memory>
#include <set>
#include <thread>

#include "exchange.h"
#include "export.h"
#include "stand_in.h"

using namespace layercast;
using namespace layercast::test;

namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kDataBytes = 3 * kMiB + 100;

/// A pool, a device, and the options of an arena on it.
struct DeviceBench {
  explicit DeviceBench(uint64_t device_bytes = 64 * kMiB) : stand_in(device_bytes), header(4096, uint8_t{' '}) {}

  ArenaOptions options(OpenMode mode) const {
    return {directory / "live", mode, header, kDataBytes, holder.handle()};
  }
  std::unique_ptr<Arena> open(OpenMode mode = OpenMode::create) const {
    return std::make_unique<Arena>(stand_in.device, options(mode));
  }

  TemporaryDirectory directory;
  StandInDevice stand_in;
  HolderProcess holder{kDataBytes};
  ThreadPool pool{2};
  ByteVector header;
};

ByteVector bytes_in(const Arena& arena, Half half) {
  const uint8_t* base = arena.base(half);
  return ByteVector(base, base + arena.data_bytes());
}

void number(const Arena& arena, Half half, uint32_t seed) {
  uint8_t* base = arena.base(half);
  for (uint64_t i = 0; i < arena.data_bytes(); i++) base[i] = static_cast<uint8_t>((i * 2654435761u + seed) >> 7);
}

LayerProgram program_in(const TemporaryDirectory& directory, uint64_t rows, uint64_t cols) {
  std::vector<float> values(rows * cols);
  for (size_t i = 0; i < values.size(); i++) values[i] = static_cast<float>(i % 777) - 300.0f;
  write_file(directory / "file", bytes_of(values));
  return {{planned(directory / "file")},
          {filled(Scheme::fp8_channel, DType::f8_e4m3, rows, cols)},
          {contiguous(0, rows, cols, DType::f32)},
          false};
}

}  // namespace

LAW("a device is named cpu, cuda or cuda:N; one that is not there is refused with its number") {
  CHECK(open_device("cpu", 1)->is_cpu());
  for (const char* name : {"", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda0", "cpu:0"}) {
    CHECK_EQUAL(ERROR_OF(open_device(name, 1)).code_name(), "NATIVE_INVALID_ARGUMENT");
  }
  const NativeError error = ERROR_OF(OpenDevice(StandInDevice::backend(), 99, 1));
  CHECK_EQUAL(error.code_name(), "NATIVE_NO_DEVICE");
  CHECK_EQUAL(detail(error, "ordinal"), 99);
}

LAW("a device says what it is, and staging takes of its memory or pins the host's") {
  DeviceBench bench;
  const auto arena = bench.open();
  const auto facts = [&] { return bench.stand_in.device->facts(); };
  CHECK(std::string(facts().name).starts_with("stand-in device"));
  CHECK_EQUAL(facts().total_bytes, bench.stand_in.total_bytes);
  const uint64_t free_bytes = facts().free_bytes;
  CHECK_EQUAL(free_bytes, bench.stand_in.total_bytes - kDataBytes);
  arena->open_staging(bench.pool, Where::device, false);
  CHECK_EQUAL(facts().free_bytes, free_bytes - kDataBytes);
  CHECK_EQUAL(facts().pinned_bytes, 0u);
  arena->open_staging(bench.pool, Where::host, false);
  CHECK_EQUAL(facts().free_bytes, free_bytes);
  CHECK_EQUAL(facts().pinned_bytes, kDataBytes);
  arena->close_staging();
  CHECK_EQUAL(facts().pinned_bytes, 0u);
}

LAW("a held arena's file is its header alone, and its bytes stay when the arena is closed, until its holder ends") {
  DeviceBench bench;
  auto arena = bench.open();
  CHECK(read_file(bench.directory / "live") == bench.header);
  number(*arena, Half::live, 1);
  const ByteVector written = bytes_in(*arena, Half::live);
  arena = nullptr;
  arena = bench.open(OpenMode::attach);
  CHECK(bytes_in(*arena, Half::live) == written);
  bench.holder.end();
  CHECK_EQUAL(ERROR_OF(bench.open(OpenMode::attach)).code_name(), "NATIVE_IO");
  CHECK_EQUAL(bench.stand_in.device->facts().free_bytes, bench.stand_in.total_bytes);
}

LAW("a held arena is attached to by its own header, and no arena is opened with the other device's kind of live half") {
  DeviceBench bench;
  bench.open();
  const auto refused = [&](const std::shared_ptr<OpenDevice>& device, const ArenaOptions& options) {
    CHECK_EQUAL(ERROR_OF(Arena(device, options)).code_name(), "NATIVE_INVALID_ARGUMENT");
  };
  ArenaOptions options = bench.options(OpenMode::attach);
  ByteVector other_header = bench.header;
  other_header[0] = 'x';
  options.header = other_header;
  refused(bench.stand_in.device, options);
  const ByteVector longer_header(8192, uint8_t{' '});
  options.header = longer_header;
  refused(bench.stand_in.device, options);
  options.header = bench.header;
  refused(open_cpu(), options);
  options.ipc_handle = bench.holder.handle().first(63);
  refused(bench.stand_in.device, options);
  options.ipc_handle = {};
  refused(bench.stand_in.device, options);
}

LAW("staging stays where it is while it is asked for there, and begins anew elsewhere") {
  DeviceBench bench;
  const auto arena = bench.open();
  for (const Where where : {Where::device, Where::host, Where::device}) {
    arena->open_staging(bench.pool, where, true);
    const ByteVector poisoned = bytes_in(*arena, Half::staging);
    CHECK(std::all_of(poisoned.begin(), poisoned.end(), [](uint8_t byte) { return byte == 0xA5; }));
    number(*arena, Half::staging, 2);
    const ByteVector written = bytes_in(*arena, Half::staging);
    arena->open_staging(bench.pool, where, false);
    CHECK(bytes_in(*arena, Half::staging) == written);
  }
}

LAW("what runs, is exchanged, digested and exported on a device is what it would be on the CPU") {
  for (const Where where : {Where::device, Where::host}) {
    DeviceBench bench;
    const auto arena = bench.open();
    arena->open_staging(bench.pool, where, true);
    std::fill_n(arena->base(Half::live), kDataBytes, uint8_t{0});
    const LayerProgram program = program_in(bench.directory, 300, 1000);
    Bench cpu(kDataBytes);
    const LayerReport expected = cpu.run(program);
    const LayerReport report = run_layer(bench.pool, *arena, Half::staging, program, CancelToken());
    CHECK_EQUAL(report.digest, expected.digest);
    CHECK_EQUAL(report.bytes_written, expected.bytes_written);
    CHECK(bytes_in(*arena, Half::staging) == cpu.staging());

    const std::vector<Span> spans = {{0, 300'000}, {300'032, 1200}};
    const ByteVector staged = bytes_in(*arena, Half::staging);
    CHECK_EQUAL(exchange(bench.pool, *arena, spans, CancelToken()).bytes, 301'200u);
    CHECK(std::equal(staged.begin(), staged.begin() + 300'000, arena->base(Half::live)));
    CHECK_EQUAL(+arena->base(Half::live)[300'000], 0);
    CHECK_EQUAL(+arena->base(Half::staging)[0], 0);
    CHECK_EQUAL(digest_spans(bench.pool, *arena, Half::live, spans, CancelToken()), expected.digest);
    const std::string path = bench.directory / "export";
    export_live(bench.pool, *arena, path, bench.header, spans, CancelToken());
    const ByteVector file = read_file(path);
    CHECK_EQUAL(file.size(), 4096u + 301'200);
    CHECK(std::equal(staged.begin(), staged.begin() + 300'000, file.begin() + 4096));
  }
}

LAW("a file that is pinned is fetched to the same bytes, and read again where it was cut and written anew") {
  DeviceBench bench;
  const auto arena = bench.open();
  LayerProgram program = program_in(bench.directory, 300, 1000);
  const auto run = [&] { return run_layer(bench.pool, *arena, Half::live, program, CancelToken()); };
  const LayerReport read = run();
  PinnedSources& pinned = bench.stand_in.device->pinned_sources();
  CHECK_EQUAL(pinned.keep(program.files, 1'200'000 - 1), 0u);
  CHECK_EQUAL(pinned.keep(program.files, 1'200'000), 1'200'000u);
  CHECK_EQUAL(bench.stand_in.device->facts().pinned_bytes, 1'200'000u);
  const LayerReport fetched = run();
  CHECK_EQUAL(fetched.digest, read.digest);
  CHECK_EQUAL(fetched.bytes_read, read.bytes_read);
  write_file(bench.directory / "file", ByteVector(1'200'000));
  program.files = {planned(bench.directory / "file")};
  CHECK(run().digest != read.digest);
  CHECK_EQUAL(+arena->base(Half::live)[1], 0);
  CHECK_EQUAL(pinned.keep({}, 0), 0u);
  CHECK_EQUAL(bench.stand_in.device->facts().pinned_bytes, 0u);
}

LAW("exponents become floats on their way to a device, whether their file is pinned or not") {
  DeviceBench bench;
  const auto arena = bench.open();
  ByteVector exponents(50'000);
  for (size_t i = 0; i < exponents.size(); i++) exponents[i] = static_cast<uint8_t>(i % 255);
  write_file(bench.directory / "file", exponents);
  LayerProgram program = {{planned(bench.directory / "file")}, {filled(Scheme::none, DType::f32, 250, 200)}, {}, false};
  program.slices = {contiguous(0, 250, 200, DType::f8_e8m0)};
  PinnedSources& pinned = bench.stand_in.device->pinned_sources();
  for (const uint64_t limit : {0u, 50'000u}) {
    CHECK_EQUAL(pinned.keep(program.files, limit), limit);
    std::fill_n(arena->base(Half::live), kDataBytes, uint8_t{0xA5});
    run_layer(bench.pool, *arena, Half::live, program, CancelToken());
    for (size_t i = 0; i < exponents.size(); i++) {
      float value;
      std::memcpy(&value, arena->base(Half::live) + 4 * i, sizeof value);
      CHECK_EQUAL(value, std::ldexp(1.0f, exponents[i] - 127));
    }
  }
}

LAW("what no slice fills is zero, where the device fetches, reads with gaps, and quantizes, as on the CPU") {
  for (const Scheme scheme : kEveryScheme) {
    DeviceBench bench;
    const auto arena = bench.open();
    LayerProgram program = program_in(bench.directory, 300, 1000);
    // Rows 100 to 127 and 228 to 299, and the last columns, are made up; the slices' columns are those of two windows.
    program.ops = {filled(scheme, scheme == Scheme::none ? DType::f32 : DType::f8_e4m3, 300, 640, 2)};
    program.ops[0].zero_rows = 100;
    program.ops[0].zero_cols = 140;
    program.slices = {{0, 40, 4000, 100, 500, DType::f32, 0, 4, -1}, {0, 2000, 4000, 100, 500, DType::f32, 128, 4, -1}};
    Bench cpu(kDataBytes);
    const LayerReport expected = cpu.run(program);
    CHECK_EQUAL(bench.stand_in.device->pinned_sources().keep(program.files, 1'200'000), 1'200'000u);
    for (int run = 0; run < 2; run++) {
      arena->open_staging(bench.pool, Where::device, true);
      const LayerReport report = run_layer(bench.pool, *arena, Half::staging, program, CancelToken());
      CHECK_EQUAL(report.digest, expected.digest);
      CHECK_EQUAL(report.bytes_written, expected.bytes_written);
      CHECK(bytes_in(*arena, Half::staging) == cpu.staging());
      CHECK_EQUAL(bench.stand_in.device->pinned_sources().keep({}, 0), 0u);
    }
  }
}

LAW("a fifth run that lets the device fetch waits for a lane, and ends while it waits when it is cancelled") {
  DeviceBench bench;
  FetchLanes& lanes = bench.stand_in.device->fetch_lanes();
  const CancelToken unused;
  std::vector<std::unique_ptr<BorrowedLane>> borrowed;
  std::set<uint32_t> numbers;
  for (int i = 0; i < 4; i++) {
    borrowed.push_back(std::make_unique<BorrowedLane>(lanes, unused));
    numbers.insert(borrowed.back()->number());
  }
  CHECK_EQUAL(numbers.size(), 4u);
  CancelToken cancel;
  std::thread canceller([&] { cancel.cancel(); });
  CHECK_EQUAL(ERROR_OF(BorrowedLane(lanes, cancel)).code_name(), "NATIVE_CANCELLED");
  canceller.join();
  const uint32_t given_back = borrowed.back()->number();
  std::thread giver([&] { borrowed.pop_back(); });
  CHECK_EQUAL(BorrowedLane(lanes, unused).number(), given_back);
  giver.join();
}

LAW("memory that the device does not have is refused with what was asked for and what is free, and the host's serves") {
  DeviceBench bench(5 * kMiB);
  const auto arena = bench.open();
  const NativeError error = ERROR_OF(arena->open_staging(bench.pool, Where::device, true));
  CHECK_EQUAL(error.code_name(), "NATIVE_OUT_OF_MEMORY");
  CHECK_EQUAL(detail(error, "bytes"), static_cast<double>(kDataBytes));
  CHECK_EQUAL(detail(error, "freeBytes"), static_cast<double>(bench.stand_in.total_bytes - kDataBytes));
  CHECK_EQUAL(ERROR_OF(arena->base(Half::staging)).code_name(), "NATIVE_INVALID_ARGUMENT");
  arena->open_staging(bench.pool, Where::host, true);
  CHECK_EQUAL(+bytes_in(*arena, Half::staging)[0], 0xA5);
}

LAW("on a device that is lost every call is refused with no_device, and what is there can still be closed") {
  DeviceBench bench;
  const auto arena = bench.open();
  arena->open_staging(bench.pool, Where::device, true);
  const LayerProgram program = program_in(bench.directory, 300, 1000);
  write_file(bench.directory / "lost", {});
  const Variable lost("LAYERCAST_STAND_IN_LOST", bench.directory / "lost");
  const std::vector<Span> spans = {{0, 1000}};
  const CancelToken cancel;
  const std::function<void()> calls[] = {
      [&] { bench.stand_in.device->facts(); },
      [&] { bench.open(OpenMode::attach); },
      [&] { arena->open_staging(bench.pool, Where::host, false); },
      [&] { run_layer(bench.pool, *arena, Half::live, program, cancel); },
      [&] { exchange(bench.pool, *arena, spans, cancel); },
      [&] { digest_spans(bench.pool, *arena, Half::live, spans, cancel); },
      [&] { export_live(bench.pool, *arena, bench.directory / "export", bench.header, spans, cancel); },
      [&] { OpenDevice(StandInDevice::backend(), 0, 1); },
  };
  for (const auto& call : calls) {
    const NativeError error = ERROR_OF(call());
    // Staging was closed to be opened elsewhere, so the exchange may not find it.
    if (!std::string(error.what()).ends_with("not open")) CHECK_EQUAL(error.code_name(), "NATIVE_NO_DEVICE");
  }
  arena->close();
}
