// Runs as a whole: many ops at once, two runs in each other, runs that are left in the middle.
#include <future>

#include "program.h"
#include "values.h"

namespace layercast::conformance {
namespace {

constexpr uint64_t kHalfBytes = 8 << 20;

/// Ops of all schemes behind each other, their tiles small and mixed.
Program mixed_program(uint32_t seed) {
  Program program;
  program.tile_bytes = 4 << 10;
  const std::span<const ValueClass> classes = value_classes();
  for (uint32_t i = 0; i < 24; i++) {
    const auto scheme = kSchemes[i % kSchemes.size()].scheme;
    const auto source = static_cast<DType>(i % 3);
    const uint64_t rows = 1 + (seed + i * 37) % 200, cols = 1 + (seed + i * 61) % 300;
    add_op(program, scheme, source, DType::none, scheme == Scheme::none ? source : DType::f8_e4m3, rows, cols, i % 5,
           i % 3 == 0, matrix_of(classes[(seed + i) % classes.size()], source, rows, cols, seed + i));
  }
  return program;
}

void begin_and_leave(const Subject& subject, const Program& program, uint8_t* base) {
  const RunSpec spec = {program.specs.data(), program.specs.size(), base};
  Run* run = nullptr;
  subject.check(subject.backend.begin_run(subject.device, &spec, &run));
  const std::vector<Tile> tiles = tiles_of(subject.backend, program);
  const Bring bring = by_buffer(subject, program);
  for (uint64_t i = 0; i < tiles.size() / 2; i++) {
    if (is_measured(program.specs[tiles[i].op].op.scheme)) continue;
    subject.check(subject.backend.put(run, 0, &tiles[i], bring(run, 0, tiles[i])));
  }
  bring(run, 0, tiles.back());  // read, and never put
  subject.backend.end_run(run);
}

}  // namespace

void check_runs(const Subject& subject, Score& score) {
  const OpenHalf one(subject, HalfKind::own, kHalfBytes);
  const OpenHalf other(subject, HalfKind::own, kHalfBytes);
  const Oracle oracle(subject, kHalfBytes);
  for (uint32_t seed = 0; seed < 8; seed++) {
    score.law("ops of all schemes in one run do not disturb each other", [&] {
      const Program program = mixed_program(seed);
      require_equal(program, run_program(subject, program, one.base(), by_buffer(subject, program)), oracle(program));
    });
  }
  score.law("two runs at the same time, on the same lanes, do not disturb each other", [&] {
    const Program first = mixed_program(100), second = mixed_program(200);
    std::promise<Outcome> of_first, of_second;
    subject.pool.post([&] { of_first.set_value(run_program(subject, first, one.base(), by_buffer(subject, first))); });
    subject.pool.post(
        [&] { of_second.set_value(run_program(subject, second, other.base(), by_buffer(subject, second))); });
    const Outcome got_first = of_first.get_future().get(), got_second = of_second.get_future().get();
    require_equal(first, got_first, oracle(first));
    require_equal(second, got_second, oracle(second));
  });
  score.law("a run that is left in the middle leaves nothing behind", [&] {
    const Program program = mixed_program(300);
    begin_and_leave(subject, program, one.base());
    require_equal(program, run_program(subject, program, one.base(), by_buffer(subject, program)), oracle(program));
  });
  score.law("a run of nothing writes nothing", [&] {
    const RunSpec spec = {nullptr, 0, one.base()};
    Run* run = nullptr;
    RunTotals totals = {};
    subject.check(subject.backend.begin_run(subject.device, &spec, &run));
    subject.check(subject.backend.finish(run, nullptr, &totals));
    subject.backend.end_run(run);
    require(totals.bytes_written == 0 && totals.digest == 0, "it has written something");
  });
}

}  // namespace layercast::conformance
