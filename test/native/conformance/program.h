// Ops with their matrices, run through a backend's table, and what comes of it.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "layer_program.h"
#include "suite.h"
#include "support.h"

namespace layercast::conformance {

using test::ByteVector;

struct Program {
  std::vector<OpSpec> specs;
  std::vector<ByteVector> matrices;  // by op, row by row, in the source dtype
  uint64_t half_bytes = 0;
  uint64_t tile_bytes = 0;  // what a tile holds at the most; 0: what the backend likes
};

struct Outcome {
  ByteVector half;  // that was kUntouched everywhere
  std::vector<BadElements> bad;
  uint64_t bytes_written;
  uint64_t digest;
};

inline constexpr uint8_t kUntouched = 0xA5;

/// Adds an op behind what is there; its output begins `shift` elements past an alignment of 256 bytes.
void add_op(Program& program, Scheme scheme, DType source, DType round, DType out, uint64_t rows, uint64_t cols,
            uint64_t shift, bool must_be_positive, ByteVector matrix);

/// The op's tiles, as the core would cut them.
std::vector<Tile> tiles_of(const Backend& backend, const Program& program);

/// Brings a tile to the lane; returns what measure and put are to be given.
using Bring = std::function<const uint8_t*(Run* run, uint32_t lane, const Tile& tile)>;

/// By the backend's buffer.
Bring by_buffer(const Subject& subject, const Program& program);

/// Runs the program, in two passes as the core does, into `base`.
Outcome run_program(const Subject& subject, const Program& program, uint8_t* base, const Bring& bring);

/// What the program must come to, by an implementation that is not the subject's: the CPU backend, or for that one the
/// slow reference.
class Oracle {
 public:
  Oracle(const Subject& subject, uint64_t half_bytes);
  ~Oracle();
  Outcome operator()(const Program& program) const;

 private:
  const bool slow_;
  Subject cpu_;
  uint64_t half_bytes_;
  uint8_t* base_ = nullptr;
};

/// Throws the first difference, by its coordinates.
void require_equal(const Program& program, const Outcome& got, const Outcome& want);

/// The recipes written down once more, slowly, from the formats' definitions.
Outcome slow_outcome(const Program& program);

std::string name_of(Scheme scheme);
std::string name_of(DType dtype);

}  // namespace layercast::conformance
