// What the core asks of a device: memory for an arena's halves, and the numbers. The core does the rest (files,
// threads, cancelling, errors). A plain table of functions that do not throw, so that a shared object opened with
// dlopen can meet it: it exports `layercast_backend` (a BackendEntry), which returns the table. The CPU's
// (cpu/backend.cc) is the oracle for every other.
//
// Threads: at most one at a time calls with a given lane, so what a lane needs (scratch; a stream and pinned buffers)
// needs no lock. Work may be queued: a tile's host memory is the backend's again once measure or put has returned, and
// nothing is sure to be done before finish (a run), or the function's own return (all others). Rows that were fetched
// are read until finish.
#pragma once

#include <cstdint>

#include "layer_program.h"

namespace layercast {

inline constexpr uint32_t kBackendAbi = 4;

/// The backend's own, opaque here.
struct Device;
struct Run;

/// device_lost: this call and every later one fails, until a new process opens the device.
enum class Status : int32_t { ok = 0, out_of_memory = 1, failed = 2, device_lost = 3 };

inline constexpr uint64_t kIpcHandleBytes = 64;

/// What a device is and has, for people, for plans and for the control page.
struct DeviceFacts {
  char name[128];
  uint8_t uuid[16];
  /// Such as 0000:17:00.0; empty where there is none.
  char pci_address[32];
  uint64_t total_bytes;
  uint64_t free_bytes;
  /// Host memory that is pinned for it by this process.
  uint64_t pinned_bytes;
};

/// file: mapped, on the CPU only; own: memory of the device; host: pinned memory of this host that the device can reach;
/// held: memory of the device that another process holds.
enum class HalfKind : int32_t { file = 0, own = 1, host = 2, held = 3 };

struct HalfSpec {
  HalfKind kind;
  uint64_t bytes;
  /// file: its descriptor, and where its tensor bytes begin.
  int fd;
  uint64_t file_offset;
  /// held: kIpcHandleBytes, as hold() gave them.
  const uint8_t* ipc_handle;
};

/// Rows of pinned host memory, the first to be copied to byte `to` of a tile, each next one `to_stride` bytes further.
struct HostRows {
  const uint8_t* at;
  uint64_t stride;
  uint64_t rows;
  uint64_t row_bytes;
  uint64_t to;
  uint64_t to_stride;
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

struct TileLimits {
  /// What a tile should hold, and a band of scale blocks, which is 128 rows high.
  uint64_t tile_bytes;
  uint64_t band_bytes;
  /// Whether a tile may hold several bands, one below the other, where a band is smaller than that.
  bool many_bands;
};

struct Backend {
  uint32_t abi;
  const char* kind;
  TileLimits tiles;
  /// Of those that are fetched.
  TileLimits fetched_tiles;
  /// exchange, digest and fill of a span: the parts that it is cut into for the threads; 0: one call a span.
  uint64_t part_bytes;

  /// How many devices this host has; failed, with the reason, where the driver does not say. Opens none of them.
  Status (*device_count)(uint32_t* count);
  Status (*open)(int ordinal, uint32_t lanes, Device** device);
  void (*close)(Device* device);
  /// A sentence about this thread's last status that was not ok.
  const char* (*last_error)();
  Status (*describe)(Device* device, DeviceFacts* facts);
  /// Memory of the device that lasts as long as this process, and the handle by which others open it (HalfKind::held).
  Status (*hold)(int ordinal, uint64_t bytes, uint8_t* ipc_handle);

  Status (*open_half)(Device* device, const HalfSpec* spec, uint8_t** base);
  void (*close_half)(Device* device, uint8_t* base, uint64_t bytes);
  Status (*fill)(Device* device, uint32_t lane, uint8_t* at, uint64_t bytes, uint8_t value);
  /// Pins mapped host memory, so that rows of it can be fetched. Null where there is no fetch.
  Status (*pin)(Device* device, const uint8_t* at, uint64_t bytes);
  void (*unpin)(Device* device, const uint8_t* at);

  Status (*begin_run)(Device* device, const RunSpec* spec, Run** run);
  /// Host memory that the lane's next tile is read into, its rows packed, in the op's source dtype.
  Status (*buffer)(Run* run, uint32_t lane, uint64_t bytes, uint8_t** host);
  /// The lane's next tile comes from pinned memory instead: measure or put follows with `host` null. What of the tile
  /// the rows do not fill is zero. Null where the backend reads host memory like any other.
  Status (*fetch)(Run* run, uint32_t lane, const Tile* tile, const HostRows* rows, uint64_t count);
  /// First pass of a scheme that has one scale for a whole matrix: the tile's amax goes into the op's.
  Status (*measure)(Run* run, uint32_t lane, const Tile* tile, const uint8_t* host);
  /// Rounds, quantizes and writes the tile; scales too.
  Status (*put)(Run* run, uint32_t lane, const Tile* tile, const uint8_t* host);
  /// Makes one head of what is derived from a matrix of the half; finish has been called since that was written.
  Status (*derive)(Run* run, uint32_t lane, const Derived* derived, uint64_t head);
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
