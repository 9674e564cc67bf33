#include "run.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <numeric>
#include <utility>

#include "failure.h"

namespace layercast {
namespace {

constexpr uint64_t kBaseAlignment = 256;
constexpr uint64_t kMostElements = 1ull << 31;  // of a tile: kernels count them with 32 bits

/// What a run's kernels add to, as the host sees it.
struct Findings {
  explicit Findings(size_t op_count) : ops(op_count) {}

  std::vector<OpState> ops;
  std::array<unsigned long long, kDigestParts> digest_parts = {};
};

OpState* state_of(const Run& run, uint32_t op) { return reinterpret_cast<OpState*>(run.states.get()) + op; }

unsigned long long* digest_parts_of(const Run& run) {
  return reinterpret_cast<unsigned long long*>(state_of(run, static_cast<uint32_t>(run.ops.size())));
}

/// So that nothing has been found yet. Set, not copied: a copy would wait for those of other runs' tiles.
void clear_findings(const Run& run) {
  static_assert(kNoElement == UINT64_MAX && offsetof(OpState, amax_bits) == 2 * sizeof kNoElement);
  cudaStream_t stream = run.device.control.get();
  if (!run.ops.empty()) {
    OpState* first = state_of(run, 0);
    check(cudaMemset2DAsync(first, sizeof *first, 0xFF, 2 * sizeof kNoElement, run.ops.size(), stream),
          "clearing a run's findings");
    check(cudaMemset2DAsync(&first->amax_bits, sizeof *first, 0, sizeof first->amax_bits, run.ops.size(), stream),
          "clearing a run's findings");
  }
  check(cudaMemsetAsync(digest_parts_of(run), 0, kDigestParts * sizeof(uint64_t), stream), "clearing a run's findings");
  check(cudaStreamSynchronize(stream), "clearing a run's findings");
}

Findings read_findings(const Run& run) {
  Findings findings(run.ops.size());
  cudaStream_t stream = run.device.control.get();
  const auto copy = [&](void* to, const void* from, uint64_t bytes) {
    if (bytes > 0) check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream), "reading a run's findings");
  };
  copy(findings.ops.data(), state_of(run, 0), findings.ops.size() * sizeof(OpState));
  copy(findings.digest_parts.data(), digest_parts_of(run), sizeof findings.digest_parts);
  check(cudaStreamSynchronize(stream), "reading a run's findings");
  return findings;
}

/// Waits for what the run has queued on a lane, not for what others have since: a slot that another run has taken was
/// waited for by that one.
void wait_for(const Run& run, Lane& lane) {
  for (Slot& slot : lane.slots) {
    {
      const std::lock_guard lock(lane.times);
      if (slot.kernel_ns != &run.kernel_ns) continue;
    }
    check(cudaEventSynchronize(slot.kernel_end.get()), "working on tiles");
    const std::lock_guard lock(lane.times);
    if (slot.kernel_ns == &run.kernel_ns) settle(slot);
  }
}

DeviceMemory take_spare(Device& device, uint64_t bytes) {
  const std::lock_guard lock(device.mutex);
  if (bytes > kSpareBytes || device.spare.empty()) return allocate_device(std::max(bytes, kSpareBytes));
  DeviceMemory memory = std::move(device.spare.back());
  device.spare.pop_back();
  return memory;
}

/// Calls for each lane that has queued anything for the run.
template <class Each>
void each_lane(const Run& run, const Each& each) {
  for (size_t i = 0; i < run.used.size(); i++) {
    if (run.used[i]) each(run.device.lanes[i]);
  }
}

DType needed_rounding(const OpSpec& spec) {
  return spec.round == spec.source || spec.round == DType::f32 ? DType::none : spec.round;
}

uint64_t tile_bytes(const OpSpec& spec, const Tile& tile) { return tile.rows * tile.cols * dtype_bytes(spec.source); }

uint64_t scales_of(const Op& op, const Tile& tile) {
  if (is_measured(op.scheme)) return tile.first_row == 0 && tile.first_col == 0 ? 1 : 0;
  return scale_count(granularity_of(op.scheme), tile.rows, tile.cols);
}

TileJob job_of(const Run& run, const Tile& tile, const uint8_t* in_device) {
  const OpSpec& spec = run.ops[tile.op];
  const Op& op = spec.op;
  const DType round = needed_rounding(spec);
  const Granularity granularity = granularity_of(op.scheme);
  const uint64_t first_scale = scale_index(granularity, tile.first_row, tile.first_col, op.cols);
  TileJob job = {
      .source = spec.source,
      .round = round,
      .out = op.out_dtype,
      .bits_kept = spec.source == op.out_dtype && round == DType::none,
      .must_be_positive = op.must_be_positive,
      .tile = in_device,
      .rows = static_cast<uint32_t>(tile.rows),
      .cols = static_cast<uint32_t>(tile.cols),
      .first_element = tile.first_row * op.cols + tile.first_col,
      .op_cols = op.cols,
      .base = run.base,
      .out_offset = op.out_offset,
      .scale_offset = granularity == Granularity::none ? 0 : static_cast<uint64_t>(op.scale_offset) + first_scale * 4,
      .band_scales = ceil_div(op.cols, kScaleBlock),
      .writes_scale = scales_of(op, tile) > 0,
      .state = state_of(run, tile.op),
      .digest_parts = digest_parts_of(run),
  };
  // Where rows mean nothing, whole ones are one long row.
  const bool by_element = granularity == Granularity::none || granularity == Granularity::matrix;
  if (by_element && tile.cols == op.cols) {
    job.cols *= job.rows;
    job.rows = 1;
  }
  return job;
}

const SchemeKernels& kernels_of(const Run& run, const Tile& tile) {
  return *kSchemeKernels[static_cast<size_t>(run.ops[tile.op].op.scheme)];
}

Slot& take_slot(Run& run, uint32_t lane, uint64_t bytes) {
  Slot& slot = next_slot(run.device.lanes[lane], bytes);
  run.used[lane] = 1;
  return slot;
}

/// Queues a kernel on the lane's slot, between its events.
template <class Launch>
void queue_kernel(Run& run, Lane& lane, Slot& slot, const Launch& launch) {
  cudaStream_t stream = lane.stream.get();
  const std::lock_guard lock(lane.times);
  check(cudaEventRecord(slot.kernel_begin.get(), stream), "timing a kernel");
  launch(Queue{stream, run.device.multiprocessors});
  check_launch("starting a kernel");
  check(cudaEventRecord(slot.kernel_end.get(), stream), "timing a kernel");
  slot.kernel_ns = &run.kernel_ns;
}

/// Queues the tile's copy, unless it was fetched, and its kernel.
template <class Launch>
void work_on(Run& run, uint32_t index, const Tile& tile, const uint8_t* host, const Launch& launch) {
  if (tile.rows == 0 || tile.cols == 0) return;
  const uint64_t bytes = tile_bytes(run.ops[tile.op], tile);
  Lane& lane = run.device.lanes[index];
  Slot& slot = lane.slots[lane.slot];
  cudaStream_t stream = lane.stream.get();
  if (host != nullptr) {
    check(cudaMemcpyAsync(slot.tile.get(), host, bytes, cudaMemcpyHostToDevice, stream), "copying a tile");
  }
  queue_kernel(run, lane, slot, [&](const Queue& queue) { launch(job_of(run, tile, slot.tile.get()), queue); });
}

void check_head(const Derived& derived) {
  if (derived.rows == 0 || derived.cols < kMostElements / derived.rows) return;
  throw Failure{Status::failed, "a head of " + std::to_string(derived.rows) + " by " + std::to_string(derived.cols) +
                                    " elements is too large: it must have less than 2^31"};
}

void check_tile(const Run& run, const Tile& tile) {
  if (tile.rows == 0 || tile.cols < kMostElements / tile.rows) return;
  throw Failure{Status::failed, "a tile of " + std::to_string(tile.rows) + " by " + std::to_string(tile.cols) +
                                    " elements of op " + std::to_string(tile.op) + " of " +
                                    std::to_string(run.ops.size()) + " is too large: it must have less than 2^31"};
}

}  // namespace

Run::Run(Device& device, const RunSpec& spec)
    : device(device), ops(spec.ops, spec.ops + spec.op_count), base(spec.base), used(device.lanes.size()) {
  if (reinterpret_cast<uintptr_t>(base) % kBaseAlignment != 0) {
    throw Failure{Status::failed, "a half on a CUDA device must begin at a multiple of 256 bytes"};
  }
  state_bytes = ops.size() * sizeof(OpState) + kDigestParts * sizeof(uint64_t);
  states = take_spare(device, state_bytes);
  clear_findings(*this);
}

Run::~Run() {
  each_lane(*this, [&](Lane& lane) {
    cudaStreamSynchronize(lane.stream.get());
    const std::lock_guard lock(lane.times);
    for (Slot& slot : lane.slots) {
      if (slot.kernel_ns == &kernel_ns) slot.kernel_ns = nullptr;
    }
  });
  if (state_bytes > kSpareBytes) return;
  const std::lock_guard lock(device.mutex);
  device.spare.push_back(std::move(states));
}

uint8_t* buffer(Run& run, uint32_t lane, uint64_t bytes) {
  return host_of(run.device, take_slot(run, lane, bytes), bytes);
}

void fetch(Run& run, uint32_t index, const Tile& tile, const HostRows* rows, uint64_t count) {
  check_tile(run, tile);
  const uint64_t bytes = tile_bytes(run.ops[tile.op], tile);
  const Slot& slot = take_slot(run, index, bytes);
  cudaStream_t stream = run.device.lanes[index].stream.get();
  uint64_t filled = 0;
  for (const HostRows* some = rows; some != rows + count; some++) filled += some->rows * some->row_bytes;
  if (filled < bytes) check(cudaMemsetAsync(slot.tile.get(), 0, bytes, stream), "clearing a tile");
  for (const HostRows* some = rows; some != rows + count; some++) {
    uint8_t* to = slot.tile.get() + some->to;
    const bool is_packed = some->stride == some->row_bytes && some->to_stride == some->row_bytes;
    if (is_packed || some->rows == 1) {
      check(cudaMemcpyAsync(to, some->at, some->rows * some->row_bytes, cudaMemcpyDefault, stream), "fetching rows");
    } else {
      check(cudaMemcpy2DAsync(to, some->to_stride, some->at, some->stride, some->row_bytes, some->rows,
                              cudaMemcpyDefault, stream),
            "fetching rows");
    }
  }
}

void measure(Run& run, uint32_t lane, const Tile& tile, const uint8_t* host) {
  check_tile(run, tile);
  work_on(run, lane, tile, host, kernels_of(run, tile).measure);
}

void put(Run& run, uint32_t lane, const Tile& tile, const uint8_t* host) {
  check_tile(run, tile);
  const Op& op = run.ops[tile.op].op;
  work_on(run, lane, tile, host, kernels_of(run, tile).put);
  run.bytes_written += tile.rows * tile.cols * dtype_bytes(op.out_dtype) + scales_of(op, tile) * 4;
}

void derive(Run& run, uint32_t index, const Derived& derived, uint64_t head) {
  check_head(derived);
  if (derived.rows == 0 || derived.cols == 0) return;
  const uint64_t bytes = derived.rows * derived.cols * dtype_bytes(derived.out_dtype);
  const bool scaled = derived.scheme != Scheme::none;
  const DeriveJob job = {
      .granularity = granularity_of(derived.scheme),
      .out = derived.out_dtype,
      .transposed = derived.transposed,
      .weight = run.base + derived.weight_offset,
      .scales = scaled ? reinterpret_cast<const float*>(run.base + derived.scale_offset) : nullptr,
      .first_row = head * derived.head_rows + derived.first_row,
      .rows = static_cast<uint32_t>(derived.rows),
      .cols = static_cast<uint32_t>(derived.cols),
      .base = run.base,
      .out_offset = derived.out_offset + head * bytes,
      .digest_parts = digest_parts_of(run),
  };
  Slot& slot = take_slot(run, index, 0);
  queue_kernel(run, run.device.lanes[index], slot, [&](const Queue& queue) { launch_derive(job, queue); });
  run.bytes_written += bytes;
}

void finish(Run& run, BadElements* bad, RunTotals& totals) {
  each_lane(run, [&](Lane& lane) { wait_for(run, lane); });
  std::ranges::fill(run.used, 0);
  const Findings found = read_findings(run);
  for (size_t i = 0; i < run.ops.size(); i++) bad[i] = {found.ops[i].non_finite, found.ops[i].not_positive};
  totals = {.bytes_written = run.bytes_written, .place_ns = 0, .quantize_ns = run.kernel_ns, .write_ns = 0,
            .digest = std::accumulate(found.digest_parts.begin(), found.digest_parts.end(), uint64_t{0})};
}

}  // namespace layercast
