// An op of more than 2^31 elements: nothing counts them with 32 bits. Its rows are cut out of one small pool of values.
#include <unistd.h>

#include <cstring>

#include "program.h"
#include "values.h"

namespace layercast::conformance {
namespace {

constexpr uint64_t kRows = 65'553;
constexpr uint64_t kCols = 32'785;
constexpr uint64_t kPoolElements = 1 << 20;
constexpr uint64_t kHostBytes = 24ull << 30;  // for two outcomes and the oracle's half
static_assert(kRows * kCols > 1ull << 31);

/// The matrix's last element is a NaN.
Bring from_pool(const Subject& subject, const ByteVector& pool) {
  return [&](Run* run, uint32_t lane, const Tile& tile) {
    uint8_t* host = nullptr;
    subject.check(subject.backend.buffer(run, lane, tile.rows * tile.cols * 2, &host));
    for (uint64_t row = 0; row < tile.rows; row++) {
      const uint64_t first = (tile.first_row + row) * 7919 % kPoolElements + tile.first_col;
      std::memcpy(host + row * tile.cols * 2, &pool[first * 2], tile.cols * 2);
    }
    const bool is_last = tile.first_row + tile.rows == kRows && tile.first_col + tile.cols == kCols;
    if (is_last) std::memset(host + tile.rows * tile.cols * 2 - 2, 0xFF, 2);
    return static_cast<const uint8_t*>(host);
  };
}

uint64_t free_host_bytes() {
  return static_cast<uint64_t>(sysconf(_SC_AVPHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

void check_scheme(const Subject& subject, const Subject& cpu, Scheme scheme, const ByteVector& pool) {
  Program program;
  program.tile_bytes = 4 << 20;
  add_op(program, scheme, DType::bf16, DType::none, scheme == Scheme::none ? DType::bf16 : DType::f8_e4m3, kRows, kCols,
         0, false, {});
  const auto outcome_of = [&](const Subject& asked) {
    const OpenHalf half(asked, HalfKind::own, program.half_bytes);
    return run_program(asked, program, half.base(), from_pool(asked, pool));
  };
  const Outcome got = outcome_of(subject);
  require_equal(program, got, outcome_of(cpu));
  require(got.bad[0].non_finite == kRows * kCols - 1, "the last element is not found");
}

}  // namespace

void check_large(const Subject& subject, Score& score) {
  DeviceFacts facts = {};
  subject.check(subject.backend.describe(subject.device, &facts));
  if (subject.is_cpu() || facts.free_bytes < 6ull << 30 || free_host_bytes() < kHostBytes) {
    std::cout << "not tried: an op of more than 2^31 elements (it needs another backend than the CPU's, 6 GiB of the "
                 "device and 24 GiB of the host)\n";
    return;
  }
  const ByteVector pool = matrix_of(value_classes()[1], DType::bf16, 1, kPoolElements + kCols, 6);
  Subject cpu = {cpu_backend(), nullptr, subject.pool};
  cpu.check(cpu.backend.open(0, subject.pool.lanes(), &cpu.device));
  for (const Scheme scheme : test::kEveryScheme) {
    score.law("more than 2^31 elements, " + name_of(scheme), [&] { check_scheme(subject, cpu, scheme, pool); });
  }
  cpu.backend.close(cpu.device);
}

}  // namespace layercast::conformance
