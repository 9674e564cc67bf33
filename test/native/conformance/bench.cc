// What the kernels alone take for 1 GiB of BF16, as the backend's own clock has it, beside a copy within the device.
#include <algorithm>
#include <cstdio>

#include "program.h"
#include "timing.h"
#include "values.h"

namespace layercast::conformance {
namespace {

constexpr uint64_t kSourceBytes = 1ull << 30;
constexpr int kRepeats = 5;

struct Subcase {
  const char* name;
  Scheme scheme;
  uint64_t cols;
  uint64_t tile_bytes;
};

/// Large tiles, so that the time is the kernel's and not its start's.
constexpr Subcase kSubcases[] = {
    {"none", Scheme::none, 4096, 256 << 20},
    {"fp8-tensor", Scheme::fp8_tensor, 4096, 256 << 20},
    {"fp8-channel", Scheme::fp8_channel, 4096, 256 << 20},
    {"fp8-channel, 14336 columns", Scheme::fp8_channel, 14336, 256 << 20},
    {"fp8-block", Scheme::fp8_block, 4096, 256 << 20},
};

struct Times {
  double measure_ms;
  double put_ms;
};

/// Runs all tiles on one lane, so that no two kernels share the device.
Times run_once(const Subject& subject, const Program& program, uint8_t* base, const ByteVector& values) {
  const Backend& backend = subject.backend;
  const RunSpec spec = {program.specs.data(), program.specs.size(), base};
  Run* run = nullptr;
  subject.check(backend.begin_run(subject.device, &spec, &run));
  const auto pass = [&](Status (*work)(Run*, uint32_t, const Tile*, const uint8_t*)) {
    for (const Tile& tile : tiles_of(backend, program)) {
      uint8_t* host = nullptr;
      const uint64_t bytes = tile.rows * tile.cols * 2;
      subject.check(backend.buffer(run, 0, bytes, &host));
      std::copy_n(values.begin(), std::min<uint64_t>(bytes, values.size()), host);
      subject.check(work(run, 0, &tile, host));
    }
    BadElements bad;
    RunTotals totals = {};
    subject.check(backend.finish(run, &bad, &totals));
    return ms_from_ns(totals.place_ns + totals.quantize_ns + totals.write_ns);
  };
  const double measure_ms = is_measured(program.specs[0].op.scheme) ? pass(backend.measure) : 0;
  const double put_ms = pass(backend.put) - measure_ms;
  backend.end_run(run);
  return {measure_ms, put_ms};
}

double copy_gb_per_second(const Subject& subject, uint8_t* from, uint8_t* to) {
  if (subject.backend.fetch == nullptr) return 0;
  const OpSpec op = {test::filled(Scheme::none, DType::bf16, 1, kSourceBytes / 2), DType::bf16, DType::none};
  const RunSpec spec = {&op, 1, to};
  const Tile tile = {0, 0, 1, 0, kSourceBytes / 2};
  const HostRows rows = {from, kSourceBytes, 1, kSourceBytes, 0, kSourceBytes};
  double best_ms = 1e9;
  Run* run = nullptr;
  subject.check(subject.backend.begin_run(subject.device, &spec, &run));
  for (int i = 0; i <= kRepeats; i++) {  // the first makes the memory that it copies to
    BadElements bad;
    RunTotals totals;
    Stopwatch watch;
    for (int copies = 0; copies < 8; copies++) subject.check(subject.backend.fetch(run, 0, &tile, &rows, 1));
    subject.check(subject.backend.finish(run, &bad, &totals));
    if (i > 1) best_ms = std::min(best_ms, ms_from_ns(watch.lap_ns()) / 8);
  }
  subject.backend.end_run(run);
  return 2 * static_cast<double>(kSourceBytes) / best_ms / 1e6;
}

void print(const std::string& name, double ms, uint64_t bytes, double copy) {
  const double speed = static_cast<double>(bytes) / ms / 1e6;
  std::printf("%-44s %8.3f ms %8.0f GB/s", name.c_str(), ms, speed);
  if (copy > 0) std::printf("   %.2f of a copy", speed / copy);
  std::printf("\n");
}

}  // namespace

void bench(const Subject& subject) {
  const OpenHalf half(subject, HalfKind::own, kSourceBytes + (64 << 20));
  const OpenHalf other(subject, HalfKind::own, kSourceBytes);
  const double copy = copy_gb_per_second(subject, other.base(), half.base());
  if (copy > 0) {
    print("copy within the device", 2e-6 * static_cast<double>(kSourceBytes) / copy, 2 * kSourceBytes, copy);
  }
  const ByteVector values = matrix_of(value_classes()[1], DType::bf16, 1024, 4096, 7);
  for (const Subcase& one : kSubcases) {
    Program program;
    program.tile_bytes = one.tile_bytes;
    const uint64_t rows = kSourceBytes / 2 / one.cols / 128 * 128;
    const uint64_t elements = rows * one.cols;
    const DType out = one.scheme == Scheme::none ? DType::bf16 : DType::f8_e4m3;
    add_op(program, one.scheme, DType::bf16, DType::none, out, rows, one.cols, 0, false, {});
    Times best = {1e9, 1e9};
    for (int i = 0; i < kRepeats; i++) {
      const Times times = run_once(subject, program, half.base(), values);
      best = {std::min(best.measure_ms, times.measure_ms), std::min(best.put_ms, times.put_ms)};
    }
    if (is_measured(one.scheme)) {
      print(std::string(one.name) + ": measure", best.measure_ms, 2 * elements, copy);
    }
    print(std::string(one.name) + ": put", best.put_ms, elements * (2 + dtype_bytes(out)), copy);
  }
  Stopwatch watch;
  subject.check(subject.backend.exchange(subject.device, 0, half.base(), other.base(), kSourceBytes));
  watch.lap_ns();
  subject.check(subject.backend.exchange(subject.device, 0, half.base(), other.base(), kSourceBytes));
  print("exchange of 1 GiB, read and written twice", ms_from_ns(watch.lap_ns()), 4 * kSourceBytes, copy);
  uint64_t sum = 0;
  subject.check(subject.backend.digest(subject.device, 0, half.base(), 0, kSourceBytes, &sum));
  watch.lap_ns();
  subject.check(subject.backend.digest(subject.device, 0, half.base(), 0, kSourceBytes, &sum));
  print("digest of 1 GiB", ms_from_ns(watch.lap_ns()), kSourceBytes, copy);
}

}  // namespace layercast::conformance
