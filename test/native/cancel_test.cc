// When a run has ended, however it ended, nothing of it writes to the arena any more.
#include <algorithm>
#include <thread>

#include "check.h"
#include "support.h"

using namespace layercast;
using namespace layercast::test;

namespace {

constexpr uint64_t kRows = 512, kCols = 4096;

/// Fills staging with a pattern right after a run has ended, lets every thread of the pool end, and looks whether a
/// byte changed.
bool quiet_after(Bench& bench) {
  uint8_t* base = bench.arena->base(Half::staging);
  const uint64_t bytes = bench.arena->data_bytes();
  std::fill_n(base, bytes, uint8_t{0x5C});
  bench.pool = nullptr;
  return std::all_of(base, base + bytes, [](uint8_t byte) { return byte == 0x5C; });
}

LayerProgram large_program(const std::string& path, Scheme scheme) {
  LayerProgram program = {{planned(path)}, {}, {contiguous(0, kRows, kCols, DType::f32)}, false};
  program.ops = {filled(scheme, scheme == Scheme::none ? DType::f32 : DType::f8_e4m3, kRows, kCols)};
  return program;
}

}  // namespace

LAW("a run that carries a cancelled token writes nothing") {
  TemporaryDirectory directory;
  write_file(directory / "file", ByteVector(kRows * kCols * 4));
  Bench bench(kRows * kCols * 4);
  CancelToken cancel;
  cancel.cancel();
  const LayerProgram program = large_program(directory / "file", Scheme::none);
  const NativeError error = ERROR_OF(run_layer(*bench.pool, *bench.arena, Half::staging, program, cancel));
  CHECK_EQUAL(error.code_name(), "NATIVE_CANCELLED");
  const ByteVector staging = bench.staging();
  CHECK(std::all_of(staging.begin(), staging.end(), [](uint8_t byte) { return byte == 0xA5; }));
}

LAW("a token is cancelled with its parent") {
  const auto parent = std::make_shared<CancelToken>();
  const CancelToken child(parent);
  CHECK(!child.cancelled());
  parent->cancel();
  CHECK(child.cancelled());
}

LAW("a run cancelled at any moment ends with no write to come") {
  TemporaryDirectory directory;
  write_file(directory / "file", ByteVector(kRows * kCols * 4));
  for (int i = 0; i < 24; i++) {
    const Scheme scheme = i % 2 == 0 ? Scheme::fp8_tensor : Scheme::none;
    const LayerProgram program = large_program(directory / "file", scheme);
    Bench bench(kRows * kCols * 4, 4);
    CancelToken cancel;
    std::thread canceller([&] {
      std::this_thread::sleep_for(std::chrono::microseconds(300 * i));
      cancel.cancel();
    });
    if (i == 0) canceller.join();  // the earliest moment: before it begins
    bool cancelled = false;
    try {
      run_layer(*bench.pool, *bench.arena, Half::staging, program, cancel);
    } catch (const NativeError& error) {
      cancelled = true;
      CHECK_EQUAL(error.code_name(), "NATIVE_CANCELLED");
    }
    CHECK(quiet_after(bench));
    if (canceller.joinable()) canceller.join();
    if (i == 0) CHECK(cancelled);
  }
}

LAW("a run that fails in the middle ends with no write to come") {
  TemporaryDirectory directory;
  for (int i = 0; i < 8; i++) {
    write_file(directory / "file", ByteVector(kRows * kCols * 4));
    const LayerProgram program = large_program(directory / "file", Scheme::none);
    Bench bench(kRows * kCols * 4, 4);
    std::thread cutter([&] { std::filesystem::resize_file(directory / "file", 100'000); });
    try {
      bench.run(program);
    } catch (const NativeError& error) {
      CHECK_EQUAL(error.code_name(), "NATIVE_SOURCE_CHANGED");
    }
    CHECK(quiet_after(bench));
    cutter.join();
  }
}

LAW("runs of several callers share the threads and do not disturb each other") {
  TemporaryDirectory directory;
  std::vector<float> values(kRows * kCols);
  for (size_t i = 0; i < values.size(); i++) values[i] = static_cast<float>(i % 1000) - 500.0f;
  write_file(directory / "file", bytes_of(values));
  Bench bench(8 * kRows * kCols, 3);
  std::vector<std::promise<LayerReport>> reports(4);
  for (size_t i = 0; i < reports.size(); i++) {
    bench.pool->post([&, i] {
      LayerProgram program = large_program(directory / "file", Scheme::fp8_channel);
      program.ops[0].out_offset += i * 2 * kRows * kCols;
      program.ops[0].scale_offset += static_cast<int64_t>(i * 2 * kRows * kCols);
      reports[i].set_value(bench.run(program));
    });
  }
  for (auto& report : reports) CHECK_EQUAL(report.get_future().get().bytes_written, kRows * kCols + 4 * kRows);
  const ByteVector bytes = bench.staging();
  for (size_t i = 1; i < reports.size(); i++) {
    CHECK(std::equal(bytes.begin(), bytes.begin() + kRows * kCols + 4 * kRows,
                     bytes.begin() + static_cast<ptrdiff_t>(i * 2 * kRows * kCols)));
  }
}
