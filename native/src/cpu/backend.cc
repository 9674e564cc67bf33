// The CPU meets backend.h: halves are mapped memory, a tile is done when the call returns.
#include "../backend.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <new>
#include <string>

#include "../digest.h"
#include "../error.h"
#include "../host_memory.h"
#include "schemes.h"

namespace layercast {
namespace {

constexpr uint64_t kExchangeBytes = 16 << 10;

thread_local std::string last_sentence;

Status fail(Status status, const std::string& sentence) {
  last_sentence = sentence;
  return status;
}

/// Runs the body; what it throws becomes a status.
template <class Body>
Status guard(const Body& body) {
  try {
    body();
    return Status::ok;
  } catch (const std::bad_alloc&) {
    return fail(Status::out_of_memory, "there is no memory for a lane's scratch");
  } catch (const NativeError& error) {
    return fail(Status::failed, error.what());
  }
}

Status device_count(uint32_t* count) {
  *count = 1;
  return Status::ok;
}

Status open_device(int, uint32_t lanes, Device** device) {
  return guard([&] { *device = new Device{std::vector<Lane>(lanes), &chosen_vector_code()}; });
}

void close_device(Device* device) { delete device; }

const char* last_error() { return last_sentence.c_str(); }

Status describe(Device*, DeviceFacts* facts) {
  *facts = {};
  std::strncpy(facts->name, "CPU", sizeof facts->name - 1);
  facts->total_bytes = total_host_bytes();
  facts->free_bytes = available_host_bytes();
  return Status::ok;
}

Status hold(int, uint64_t, uint8_t*) { return fail(Status::failed, "the CPU's arenas are files: nobody holds them"); }

Status open_half(Device*, const HalfSpec* spec, uint8_t** base) {
  if (spec->kind == HalfKind::held) return fail(Status::failed, "the CPU cannot open memory that another process holds");
  const bool is_file = spec->kind == HalfKind::file;
  const int flags = is_file ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
  void* mapped = mmap(nullptr, spec->bytes, PROT_READ | PROT_WRITE, flags, is_file ? spec->fd : -1,
                      is_file ? static_cast<off_t>(spec->file_offset) : 0);
  if (mapped == MAP_FAILED) {
    const int error_number = errno;
    return fail(error_number == ENOMEM ? Status::out_of_memory : Status::failed,
                "mapping " + std::to_string(spec->bytes) + " bytes failed: " + std::strerror(error_number));
  }
  if (!is_file) madvise(mapped, spec->bytes, MADV_HUGEPAGE);  // only a wish
  *base = static_cast<uint8_t*>(mapped);
  return Status::ok;
}

void close_half(Device*, uint8_t* base, uint64_t bytes) { munmap(base, bytes); }

Status fill(Device*, uint32_t, uint8_t* at, uint64_t bytes, uint8_t value) {
  std::memset(at, value, bytes);
  return Status::ok;
}

Status begin_run(Device* device, const RunSpec* spec, Run** run) {
  return guard([&] {
    *run = new Run{*device, std::vector<OpSpec>(spec->ops, spec->ops + spec->op_count),
                   std::make_unique<OpState[]>(spec->op_count), spec->base};
  });
}

Status buffer(Run* run, uint32_t lane, uint64_t bytes, uint8_t** host) {
  return guard([&] {
    std::vector<uint8_t>& memory = run->device.lanes[lane].host;
    memory.resize(std::max<uint64_t>(memory.size(), bytes));
    *host = memory.data();
  });
}

void add_totals(Run& run, const RunTotals& totals) {
  run.bytes_written.fetch_add(totals.bytes_written, std::memory_order_relaxed);
  run.place_ns.fetch_add(totals.place_ns, std::memory_order_relaxed);
  run.quantize_ns.fetch_add(totals.quantize_ns, std::memory_order_relaxed);
  run.write_ns.fetch_add(totals.write_ns, std::memory_order_relaxed);
  run.digest.fetch_add(totals.digest, std::memory_order_relaxed);
}

template <class Element>
void grow(std::vector<Element>& memory, uint64_t elements) {
  if (memory.size() < elements) memory.resize(elements);
}

void grow(Lane& lane, const Scratch& scratch) {
  grow(lane.values, scratch.values);
  grow(lane.placed, scratch.placed);
  grow(lane.codes, scratch.codes);
  grow(lane.scales, scratch.scales);
}

/// Lets one of the scheme's functions work on the tile.
Status on_tile(Run* run, uint32_t lane, const Tile* tile, const uint8_t* host, void (*SchemeCode::*step)(TileWork&)) {
  return guard([&] {
    TileWork work{*run, run->ops[tile->op], run->states[tile->op], *tile, run->device.lanes[lane], host,
                  *run->device.vectors};
    const SchemeCode& code = *kSchemeCodes[static_cast<size_t>(work.spec.op.scheme)];
    grow(work.lane, code.scratch(work));
    (code.*step)(work);
    add_totals(*run, work.totals);
  });
}

Status measure(Run* run, uint32_t lane, const Tile* tile, const uint8_t* host) {
  return on_tile(run, lane, tile, host, &SchemeCode::measure);
}

Status put(Run* run, uint32_t lane, const Tile* tile, const uint8_t* host) {
  return on_tile(run, lane, tile, host, &SchemeCode::put);
}

Status derive_head(Run* run, uint32_t lane, const Derived* derived, uint64_t head) {
  return guard([&] {
    DeriveWork work{*run, *derived, head, run->device.lanes[lane], *run->device.vectors};
    derive(work);
    add_totals(*run, work.totals);
  });
}

Status finish(Run* run, BadElements* bad, RunTotals* totals) {
  for (size_t i = 0; i < run->ops.size(); i++) {
    bad[i] = {run->states[i].non_finite.load(), run->states[i].not_positive.load()};
  }
  *totals = {run->bytes_written.load(), run->place_ns.load(), run->quantize_ns.load(), run->write_ns.load(),
             run->digest.load()};
  return Status::ok;
}

void end_run(Run* run) { delete run; }

Status exchange(Device*, uint32_t, uint8_t* a, uint8_t* b, uint64_t bytes) {
  alignas(64) uint8_t kept[kExchangeBytes];
  for (uint64_t done = 0; done < bytes; done += kExchangeBytes) {
    const uint64_t count = std::min(kExchangeBytes, bytes - done);
    std::memcpy(kept, a + done, count);
    std::memcpy(a + done, b + done, count);
    std::memcpy(b + done, kept, count);
  }
  return Status::ok;
}

Status digest(Device* device, uint32_t, const uint8_t* base, uint64_t offset, uint64_t bytes, uint64_t* sum) {
  *sum = digest_bytes(base + offset, offset, bytes, *device->vectors);
  return Status::ok;
}

Status read_back(Device*, uint32_t, const uint8_t* from, uint64_t bytes, uint8_t* host) {
  std::memcpy(host, from, bytes);
  return Status::ok;
}

constexpr Backend kCpuBackend = {
    .abi = kBackendAbi,
    .kind = "cpu",
    .tiles = {.tile_bytes = 512 << 10, .band_bytes = 2 << 20, .many_bands = false},
    .fetched_tiles = {},
    .part_bytes = 1 << 20,
    .device_count = device_count,
    .open = open_device,
    .close = close_device,
    .last_error = last_error,
    .describe = describe,
    .hold = hold,
    .open_half = open_half,
    .close_half = close_half,
    .fill = fill,
    .pin = nullptr,
    .unpin = nullptr,
    .begin_run = begin_run,
    .buffer = buffer,
    .fetch = nullptr,
    .measure = measure,
    .put = put,
    .derive = derive_head,
    .finish = finish,
    .end_run = end_run,
    .exchange = exchange,
    .digest = digest,
    .read_back = read_back,
};

}  // namespace

const Backend& cpu_backend() { return kCpuBackend; }

}  // namespace layercast
