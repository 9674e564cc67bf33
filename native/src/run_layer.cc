#include "run_layer.h"

#include <atomic>
#include <optional>
#include <tuple>

#include "error.h"
#include "source.h"
#include "tiles.h"
#include "timing.h"

namespace layercast {
namespace {

/// A run of the backend, ended with its scope.
class BackendRun {
 public:
  BackendRun(Arena& arena, Half half, const LayerProgram& program) : arena_(arena), bad_(program.ops.size()) {
    std::vector<OpSpec> specs;
    for (const Op& op : program.ops) specs.push_back({op, source_dtype(program, op), rounding(op)});
    const RunSpec spec = {specs.data(), specs.size(), arena.base(half)};
    arena.check(arena.backend().begin_run(arena.device(), &spec, &run_));
  }
  ~BackendRun() { arena_.backend().end_run(run_); }
  BackendRun(const BackendRun&) = delete;
  BackendRun& operator=(const BackendRun&) = delete;

  uint8_t* buffer(uint32_t lane, uint64_t bytes) {
    uint8_t* host = nullptr;
    arena_.check(arena_.backend().buffer(run_, lane, bytes, &host));
    return host;
  }
  void fetch(uint32_t lane, const Tile& tile, const std::vector<HostRows>& rows) {
    arena_.check(arena_.backend().fetch(run_, lane, &tile, rows.data(), rows.size()));
  }
  void measure(uint32_t lane, const Tile& tile, const uint8_t* host) {
    arena_.check(arena_.backend().measure(run_, lane, &tile, host));
  }
  void put(uint32_t lane, const Tile& tile, const uint8_t* host) {
    arena_.check(arena_.backend().put(run_, lane, &tile, host));
  }
  void derive(uint32_t lane, const Derived& derived, uint64_t head) {
    arena_.check(arena_.backend().derive(run_, lane, &derived, head));
  }
  void finish() { arena_.check(arena_.backend().finish(run_, bad_.data(), &totals_)); }

  const RunTotals& totals() const { return totals_; }
  const std::vector<BadElements>& bad() const { return bad_; }

 private:
  Arena& arena_;
  Run* run_ = nullptr;
  RunTotals totals_ = {};
  std::vector<BadElements> bad_;
};

struct ReadTotals {
  std::atomic<uint64_t> bytes = 0;
  std::atomic<uint64_t> ns = 0;
};

/// Brings a tile to the backend, which reads it by itself where it can (null), or else finds it where this returns.
const uint8_t* bring_tile(const LayerProgram& program, const SourceFiles& files, BackendRun& run, uint32_t lane,
                          const Tile& tile, ReadTotals& totals) {
  Stopwatch watch;
  const std::vector<HostRows> rows = files.pinned_rows(tile);
  uint8_t* host = nullptr;
  if (rows.empty()) {
    host = run.buffer(lane, tile.rows * tile.cols * dtype_bytes(source_dtype(program, program.ops[tile.op])));
    totals.bytes.fetch_add(files.read_tile(tile, host), std::memory_order_relaxed);
  } else {
    run.fetch(lane, tile, rows);
    for (const HostRows& some : rows) totals.bytes.fetch_add(some.rows * some.row_bytes, std::memory_order_relaxed);
  }
  totals.ns.fetch_add(watch.lap_ns(), std::memory_order_relaxed);
  return host;
}

/// Scales that several matrices are to share are one number. What is not a number agrees with nothing.
void check_agreements(const LayerProgram& program, const SourceFiles& files) {
  for (const Agreement& agreement : program.agreements) {
    const float one = files.read_value(agreement.slice);
    const float other = files.read_value(agreement.with);
    if (one == other) continue;
    files.check_unchanged();  // bytes that changed underneath are the better reason
    throw NativeError(ErrorCode::scales_differ,
                      "slice " + std::to_string(agreement.slice) + " is " + std::to_string(one) + ", slice " +
                          std::to_string(agreement.with) + " is " + std::to_string(other) + ": they must be equal",
                      {{"slice", static_cast<double>(agreement.slice)}, {"with", static_cast<double>(agreement.with)}});
  }
}

/// What is derived from matrices that are finished, head by head on all threads.
void derive_all(ThreadPool& pool, BackendRun& run, const LayerProgram& program, const CancelToken& cancel) {
  for (const Derived& derived : program.derived) {
    pool.each(derived.heads, &cancel, [&](uint64_t head, uint32_t lane) { run.derive(lane, derived, head); });
  }
}

/// A bad element as the caller knows it, ordered as it is to be reported.
struct BadPlace {
  uint64_t slice;
  uint64_t row;
  uint64_t col;
  ErrorCode code;

  auto key() const { return std::tuple(slice, row, col); }
};

BadPlace locate(const LayerProgram& program, const Op& op, uint64_t element, ErrorCode code) {
  const uint64_t row = element / op.cols, col = element % op.cols;
  for (uint64_t i = op.first_slice; i < op.first_slice + op.slice_count; i++) {
    const Slice& slice = program.slices[i];
    const bool is_of_slice = row >= slice.to_row && row < slice.to_row + slice.rows && col < slice.cols;
    if (is_of_slice) return {i, row - slice.to_row, col, code};
  }
  return {program.slices.size(), row, col, code};  // a constant or a zero, which has no slice
}

[[noreturn]] void throw_bad(const BadPlace& place) {
  const char* what = place.code == ErrorCode::non_finite ? " is not finite" : " is not positive";
  throw NativeError(place.code,
                    "element [" + std::to_string(place.row) + ", " + std::to_string(place.col) + "] of slice " +
                        std::to_string(place.slice) + what,
                    {{"slice", static_cast<double>(place.slice)},
                     {"row", static_cast<double>(place.row)},
                     {"col", static_cast<double>(place.col)}});
}

/// Throws for the first element, in slice, row and column order, that the program does not allow.
void check_elements(const LayerProgram& program, const SourceFiles& files, const std::vector<BadElements>& bad) {
  std::optional<BadPlace> first;
  const auto consider = [&](const Op& op, uint64_t element, ErrorCode code) {
    if (element == kNoElement) return;
    const BadPlace place = locate(program, op, element, code);
    if (!first || place.key() < first->key()) first = place;
  };
  for (size_t i = 0; i < bad.size(); i++) {
    if (!program.allow_non_finite) consider(program.ops[i], bad[i].non_finite, ErrorCode::non_finite);
    consider(program.ops[i], bad[i].not_positive, ErrorCode::not_positive);
  }
  if (!first) return;
  files.check_unchanged();  // bytes that changed underneath are the better reason
  throw_bad(*first);
}

/// Calls for each tile: on all threads where they read it; on this one alone, which only queues, where the device does.
template <class Piece>
void each_tile(ThreadPool& pool, Arena& arena, const std::vector<Tile>& tiles, bool fetched, const CancelToken& cancel,
               const Piece& piece) {
  if (!fetched) {
    return pool.each(tiles.size(), &cancel, [&](uint64_t index, uint32_t lane) { piece(tiles[index], lane); });
  }
  if (tiles.empty()) return;
  const BorrowedLane lane(arena.fetch_lanes(), cancel);
  for (const Tile& tile : tiles) {
    cancel.check();
    piece(tile, lane.number());
  }
}

}  // namespace

LayerReport run_layer(ThreadPool& pool, Arena& arena, Half half, const LayerProgram& program,
                      const CancelToken& cancel) {
  cancel.check();
  check_program(program, arena.data_bytes());
  const SourceFiles files(program, arena.pinned_sources());
  const bool fetched = files.seem_pinned();
  const TileLimits& limits = fetched ? arena.backend().fetched_tiles : arena.backend().tiles;
  check_agreements(program, files);
  BackendRun run(arena, half, program);
  ReadTotals read;

  // One scale for a whole matrix is needed before its first code: such tiles are read twice, which costs less than
  // keeping them.
  std::vector<Tile> first_pass, second_pass;
  for (uint32_t op = 0; op < program.ops.size(); op++) {
    cut_tiles(limits, program, op, first_pass);
    if (is_measured(program.ops[op].scheme)) cut_tiles(limits, program, op, second_pass);
  }

  each_tile(pool, arena, first_pass, fetched, cancel, [&](const Tile& tile, uint32_t lane) {
    const uint8_t* host = bring_tile(program, files, run, lane, tile, read);
    if (is_measured(program.ops[tile.op].scheme)) {
      run.measure(lane, tile, host);
    } else {
      run.put(lane, tile, host);
    }
  });
  run.finish();
  check_elements(program, files, run.bad());

  each_tile(pool, arena, second_pass, fetched, cancel, [&](const Tile& tile, uint32_t lane) {
    run.put(lane, tile, bring_tile(program, files, run, lane, tile, read));
  });
  if (!program.derived.empty()) run.finish();  // what they are made from may be on any lane
  derive_all(pool, run, program, cancel);
  run.finish();
  files.check_unchanged();

  const RunTotals& totals = run.totals();
  return {read.bytes, totals.bytes_written, read.ns, totals.place_ns, totals.quantize_ns, totals.write_ns,
          totals.digest};
}

}  // namespace layercast
