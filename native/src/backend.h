// What the core asks of a device: memory for an arena's halves, and the numbers. The core does the rest (files,
// threads, cancelling, errors). A plain table of functions that do not throw, so that a shared object opened with
// dlopen can meet it: it exports `layercast_backend` (a BackendEntry), which returns the table. The CPU's
// (cpu/backend.cc) is the oracle for every other.
//
// Threads: at most one at a time calls with a given lane, so what a lane needs (scratch; a stream and pinned buffers)
// needs no lock. Work may be queued: a tile's host memory is the backend's again once measure or put has returned, and
// nothing is sure to be done before finish (a run), or the function's own return (all others).
#pragma once

#include <cstdint>

#include "layer_program.h"

namespace layercast {

inline constexpr uint32_t kBackendAbi = 1;

/// The backend's own, opaque here.
struct Device;
struct Run;

enum class Status : int32_t { ok = 0, out_of_memory = 1, failed = 2 };

struct HalfSpec {
  uint64_t bytes;
  /// A file to map, or -1: memory of the backend's own.
  int fd;
  /// Of the tensor bytes in that file.
  uint64_t file_offset;
};

/// A part of an op's matrix: full rows, a piece of one row, or a piece of a band of scale blocks.
struct Tile {
  uint32_t op;
  uint64_t first_row;
  uint64_t rows;
  uint64_t first_col;
  uint64_t cols;
};

struct OpSpec {
  Op op;
  DType source;
  /// Values are rounded to it first; none: as they are.
  DType round;
};

struct RunSpec {
  const OpSpec* ops;
  uint64_t op_count;
  /// Of the half to write to, which the Op's offsets count from.
  uint8_t* base;
};

inline constexpr uint64_t kNoElement = UINT64_MAX;

/// An op's first bad elements, as row * cols + col; kNoElement: none. They are noted and the work goes on: whether they
/// are an error is the core's to say.
struct BadElements {
  uint64_t non_finite;
  uint64_t not_positive;
};

struct RunTotals {
  uint64_t bytes_written;
  uint64_t place_ns;
  uint64_t quantize_ns;
  uint64_t write_ns;
  uint64_t digest;
};

struct Backend {
  uint32_t abi;
  const char* kind;

  Status (*open)(int ordinal, uint32_t lanes, Device** device);
  void (*close)(Device* device);
  /// A sentence about this thread's last status that was not ok.
  const char* (*last_error)();

  Status (*open_half)(Device* device, const HalfSpec* spec, uint8_t** base);
  void (*close_half)(Device* device, uint8_t* base, uint64_t bytes);
  Status (*fill)(Device* device, uint32_t lane, uint8_t* at, uint64_t bytes, uint8_t value);

  Status (*begin_run)(Device* device, const RunSpec* spec, Run** run);
  /// Host memory that the lane's next tile is read into, its rows packed, in the op's source dtype.
  Status (*buffer)(Run* run, uint32_t lane, uint64_t bytes, uint8_t** host);
  /// First pass of fp8_tensor: the tile's amax goes into the op's.
  Status (*measure)(Run* run, uint32_t lane, const Tile* tile, const uint8_t* host);
  /// Rounds, quantizes and writes the tile; scales too.
  Status (*put)(Run* run, uint32_t lane, const Tile* tile, const uint8_t* host);
  /// Waits for all that was queued; `bad` has room for an entry an op. The run can go on after it.
  Status (*finish)(Run* run, BadElements* bad, RunTotals* totals);
  void (*end_run)(Run* run);

  /// The three below work on bytes of halves, with nothing queued when they return.
  Status (*exchange)(Device* device, uint32_t lane, uint8_t* a, uint8_t* b, uint64_t bytes);
  Status (*digest)(Device* device, uint32_t lane, const uint8_t* base, uint64_t offset, uint64_t bytes, uint64_t* sum);
  Status (*read_back)(Device* device, uint32_t lane, const uint8_t* from, uint64_t bytes, uint8_t* host);
};

const Backend& cpu_backend();

/// What a shared object exports, with C linkage.
using BackendEntry = const Backend* (*)();

}  // namespace layercast
