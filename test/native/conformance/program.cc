#include "program.h"

#include <algorithm>
#include <cstring>
#include <sstream>

#include "tiles.h"

namespace layercast::conformance {
namespace {

uint64_t aligned(uint64_t offset) { return ceil_div(offset, 256) * 256; }

void copy_tile(const Program& program, const Tile& tile, uint8_t* to) {
  const OpSpec& spec = program.specs[tile.op];
  const uint64_t element_bytes = dtype_bytes(spec.source);
  const uint64_t row_bytes = tile.cols * element_bytes;
  for (uint64_t row = 0; row < tile.rows; row++) {
    const uint64_t first = (tile.first_row + row) * spec.op.cols + tile.first_col;
    std::memcpy(to + row * row_bytes, program.matrices[tile.op].data() + first * element_bytes, row_bytes);
  }
}

uint64_t number_at(const ByteVector& bytes, uint64_t offset, uint64_t size) {
  uint64_t number = 0;
  for (uint64_t i = 0; i < size; i++) number |= static_cast<uint64_t>(bytes[offset + i]) << (8 * i);
  return number;
}

std::string place_of(const OpSpec& spec, uint64_t offset, uint64_t& first_byte, uint64_t& size) {
  const Op& op = spec.op;
  const uint64_t element_bytes = dtype_bytes(op.out_dtype);
  std::ostringstream text;
  if (offset >= op.out_offset && offset < op.out_offset + op.rows * op.cols * element_bytes) {
    const uint64_t element = (offset - op.out_offset) / element_bytes;
    first_byte = op.out_offset + element * element_bytes;
    size = element_bytes;
    text << "element [" << element / op.cols << ", " << element % op.cols << "]";
  } else if (const auto scales = static_cast<uint64_t>(op.scale_offset);
             op.scheme != Scheme::none && offset >= scales && offset < scales + 4 * scale_count(op)) {
    first_byte = scales + (offset - scales) / 4 * 4;
    size = 4;
    text << "scale " << (offset - scales) / 4;
  }
  return text.str();
}

std::string describe(const OpSpec& spec) {
  const Op& op = spec.op;
  std::ostringstream text;
  text << name_of(op.scheme) << " " << name_of(spec.source) << " rounded to " << name_of(spec.round) << " as "
       << name_of(op.out_dtype) << " [" << op.rows << ", " << op.cols << "] at " << op.out_offset;
  return text.str();
}

void require_same_bytes(const Program& program, const ByteVector& got, const ByteVector& want) {
  const auto found = std::mismatch(got.begin(), got.end(), want.begin());
  if (found.first == got.end()) return;
  const auto offset = static_cast<uint64_t>(found.first - got.begin());
  uint64_t first_byte = offset, size = 1;
  std::ostringstream text;
  for (const OpSpec& spec : program.specs) {
    const std::string place = place_of(spec, offset, first_byte, size);
    if (!place.empty()) text << describe(spec) << ", " << place;
  }
  if (text.str().empty()) text << "byte " << offset << ", which belongs to no op";
  text << std::hex << ": got 0x" << number_at(got, first_byte, size);
  text << ", want 0x" << number_at(want, first_byte, size);
  throw std::runtime_error(text.str());
}

void require_same_element(const OpSpec& spec, const char* what, uint64_t got, uint64_t want) {
  if (got == want) return;
  const auto place = [&](uint64_t element) {
    if (element == kNoElement) return std::string("none");
    return std::to_string(element) + ", in row " + std::to_string(element / spec.op.cols);
  };
  throw std::runtime_error(describe(spec) + ", first element that is not " + what + ": got " + place(got) + ", want " +
                           place(want));
}

}  // namespace

void add_op(Program& program, Scheme scheme, DType source, DType round, DType out, uint64_t rows, uint64_t cols,
            uint64_t shift, bool must_be_positive, ByteVector matrix) {
  Op op = test::filled(scheme, out, rows, cols);
  op.must_be_positive = must_be_positive;
  op.round_dtype = round;
  op.out_offset = aligned(program.half_bytes) + 256 + shift * dtype_bytes(out);
  const uint64_t end = op.out_offset + rows * cols * dtype_bytes(out);
  op.scale_offset = scheme == Scheme::none ? -1 : static_cast<int64_t>(aligned(end + 1) + shift % 64 * 4);
  program.half_bytes = std::max(end, static_cast<uint64_t>(op.scale_offset + 1) + 4 * scale_count(op)) + 300;
  program.specs.push_back({op, source, round});
  program.matrices.push_back(std::move(matrix));
}

std::vector<Tile> tiles_of(const Backend& backend, const Program& program) {
  TileLimits limits = backend.tiles;
  if (program.tile_bytes != 0) limits.tile_bytes = limits.band_bytes = program.tile_bytes;
  std::vector<Tile> tiles;
  for (uint32_t i = 0; i < program.specs.size(); i++) {
    LayerProgram alone = {{}, {program.specs[i].op}, {}, false};
    const Op& op = alone.ops[0];
    alone.slices.push_back(test::contiguous(0, op.rows, op.cols, program.specs[i].source));
    const size_t before = tiles.size();
    cut_tiles(limits, alone, 0, tiles);
    for (size_t tile = before; tile < tiles.size(); tile++) tiles[tile].op = i;
  }
  return tiles;
}

Bring by_buffer(const Subject& subject, const Program& program) {
  return [&](Run* run, uint32_t lane, const Tile& tile) {
    uint8_t* host = nullptr;
    subject.check(subject.backend.buffer(run, lane, tile.rows * tile.cols * dtype_bytes(program.specs[tile.op].source),
                                         &host));
    copy_tile(program, tile, host);
    return static_cast<const uint8_t*>(host);
  };
}

Outcome run_program(const Subject& subject, const Program& program, uint8_t* base, const Bring& bring) {
  const Backend& backend = subject.backend;
  subject.check(backend.fill(subject.device, 0, base, program.half_bytes, kUntouched));
  const RunSpec spec = {program.specs.data(), program.specs.size(), base};
  Run* begun = nullptr;
  subject.check(backend.begin_run(subject.device, &spec, &begun));
  const std::unique_ptr<Run, void (*)(Run*)> run(begun, backend.end_run);
  const std::vector<Tile> tiles = tiles_of(backend, program);
  const auto is_read_twice = [&](const Tile& tile) { return is_measured(program.specs[tile.op].op.scheme); };
  Outcome outcome = {ByteVector(program.half_bytes), std::vector<BadElements>(program.specs.size()), 0, 0};
  RunTotals totals = {};
  subject.pool.each(tiles.size(), nullptr, [&](uint64_t index, uint32_t lane) {
    const Tile& tile = tiles[index];
    const uint8_t* host = bring(run.get(), lane, tile);
    subject.check((is_read_twice(tile) ? backend.measure : backend.put)(run.get(), lane, &tile, host));
  });
  subject.check(backend.finish(run.get(), outcome.bad.data(), &totals));
  subject.pool.each(tiles.size(), nullptr, [&](uint64_t index, uint32_t lane) {
    const Tile& tile = tiles[index];
    if (is_read_twice(tile)) subject.check(backend.put(run.get(), lane, &tile, bring(run.get(), lane, tile)));
  });
  subject.check(backend.finish(run.get(), outcome.bad.data(), &totals));
  outcome.bytes_written = totals.bytes_written;
  outcome.digest = totals.digest;
  subject.check(backend.read_back(subject.device, 0, base, program.half_bytes, outcome.half.data()));
  return outcome;
}

Oracle::Oracle(const Subject& subject, uint64_t half_bytes)
    : slow_(subject.is_cpu()), cpu_{cpu_backend(), nullptr, subject.pool}, half_bytes_(half_bytes) {
  if (slow_) return;
  cpu_.check(cpu_.backend.open(0, subject.pool.lanes(), &cpu_.device));
  const HalfSpec spec = {HalfKind::own, half_bytes, -1, 0, nullptr};
  cpu_.check(cpu_.backend.open_half(cpu_.device, &spec, &base_));
}

Oracle::~Oracle() {
  if (base_ != nullptr) cpu_.backend.close_half(cpu_.device, base_, half_bytes_);
  if (cpu_.device != nullptr) cpu_.backend.close(cpu_.device);
}

Outcome Oracle::operator()(const Program& program) const {
  return slow_ ? slow_outcome(program) : run_program(cpu_, program, base_, by_buffer(cpu_, program));
}

void require_equal(const Program& program, const Outcome& got, const Outcome& want) {
  require_same_bytes(program, got.half, want.half);
  for (size_t i = 0; i < program.specs.size(); i++) {
    require_same_element(program.specs[i], "finite", got.bad[i].non_finite, want.bad[i].non_finite);
    require_same_element(program.specs[i], "positive", got.bad[i].not_positive, want.bad[i].not_positive);
  }
  const std::string first = describe(program.specs[0]);
  require(got.bytes_written == want.bytes_written, first + ": bytes written are " + std::to_string(got.bytes_written) +
                                                       ", not " + std::to_string(want.bytes_written));
  require(got.digest == want.digest, first + ": the digest of what was written is wrong");
}

std::string name_of(Scheme scheme) { return kSchemes[static_cast<size_t>(scheme)].name; }

std::string name_of(DType dtype) {
  constexpr const char* kNames[] = {"nothing", "BF16", "F16", "F32", "E4M3", "U8"};
  return kNames[static_cast<int>(dtype) + 1];
}

}  // namespace layercast::conformance
