// A device for machines without a GPU. Named in LAYERCAST_CUDA_LIBRARY, it lets `--device cuda:0` run whole: its
// numbers are the CPU backend's, its memory is the host's in files that have no name, which is reached from other
// processes through the holder's /proc/PID/fd and so is gone with the last process that has it. What it says begins
// with "stand-in device", so that nobody takes it for a GPU.
//   LAYERCAST_STAND_IN_BYTES  memory of one device, shared by all processes that say the same number
//   LAYERCAST_STAND_IN_LOST   a path: once it exists, every call fails as if the device had gone
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <mutex>
#include <set>
#include <string>

#include "backend.h"

namespace layercast {
namespace {

constexpr int kDevices = 8;
constexpr char kUuid[] = "stand-in device";  // 15 bytes; the last is the ordinal
constexpr char kMagic[16] = "stand-in memory";

/// What an IPC handle holds: a file of another process.
struct HeldFile {
  char magic[16];
  int64_t pid;
  int64_t descriptor;
  uint64_t inode;
};
static_assert(sizeof(HeldFile) <= kIpcHandleBytes);

/// What backend.h calls a Device; the name itself is the CPU backend's.
struct StandIn {
  int ordinal;
  Device* cpu;
  std::mutex mutex;
  std::map<const uint8_t*, int> own;          // descriptors of its memory, by base
  std::map<const uint8_t*, uint64_t> pinned;  // bytes of host memory, by base
};

thread_local std::string last_sentence;

Status fail(Status status, const std::string& sentence) {
  last_sentence = "stand-in device: " + sentence;
  return status;
}

Status fail_errno(const std::string& what) {
  return fail(Status::failed, what + " failed: " + std::strerror(errno));
}

const char* last_error() { return last_sentence.c_str(); }

const char* lost_by() {
  const char* path = std::getenv("LAYERCAST_STAND_IN_LOST");
  return path != nullptr && access(path, F_OK) == 0 ? path : nullptr;
}

/// Does it unless the device is lost; a status of the CPU backend's comes with its sentence.
template <class Call>
Status unless_lost(const Call& call) {
  if (const char* path = lost_by()) return fail(Status::device_lost, std::string("it is lost, as there is ") + path);
  return call();
}

template <class Call>
Status on_cpu(const Call& call) {
  return unless_lost([&] {
    const Status status = call(cpu_backend());
    return status == Status::ok ? status : fail(status, cpu_backend().last_error());
  });
}

StandIn& stand_in(Device* device) { return *reinterpret_cast<StandIn*>(device); }

// ---- Memory

uint64_t total_bytes() {
  if (const char* text = std::getenv("LAYERCAST_STAND_IN_BYTES")) return std::strtoull(text, nullptr, 10);
  return static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

std::string memory_name(int ordinal) {
  return "layercast-stand-in:" + std::to_string(ordinal) + ":" + std::to_string(total_bytes());
}

/// Entries of a directory that may go while it is read, as those of processes do.
template <class Visit>
void each_entry(const std::filesystem::path& directory, const Visit& visit) {
  std::error_code error;
  std::filesystem::directory_iterator at(directory, error);
  for (; !error && at != std::filesystem::directory_iterator(); at.increment(error)) visit(at->path());
}

/// What all processes have of the device's memory. The kernel keeps this count: it is right whoever was killed.
uint64_t used_bytes(int ordinal) {
  const std::string wanted = "/memfd:" + memory_name(ordinal) + " (deleted)";
  std::set<ino_t> seen;
  uint64_t bytes = 0;
  const auto count_file = [&](const std::filesystem::path& file) {
    std::error_code error;
    struct stat status;
    if (std::filesystem::read_symlink(file, error) != wanted || stat(file.c_str(), &status) != 0) return;
    if (seen.insert(status.st_ino).second) bytes += static_cast<uint64_t>(status.st_size);
  };
  // What is no process has no such directory.
  each_entry("/proc", [&](const std::filesystem::path& process) { each_entry(process / "fd", count_file); });
  return bytes;
}

/// A descriptor of memory that is taken from the device's.
Status take_memory(int ordinal, uint64_t bytes, int* descriptor) {
  const int made = memfd_create(memory_name(ordinal).c_str(), MFD_CLOEXEC);
  if (made == -1) return fail_errno("making memory");
  // Taken first and counted then: of two that want the last bytes, both may fail, but never both succeed.
  const bool sized = ftruncate(made, static_cast<off_t>(bytes)) == 0;
  const uint64_t used = used_bytes(ordinal);
  if (sized && used <= total_bytes()) {
    *descriptor = made;
    return Status::ok;
  }
  close(made);
  return fail(Status::out_of_memory, "there is no room for " + std::to_string(bytes) + " bytes: " +
                                         std::to_string(used - (sized ? bytes : 0)) + " of " +
                                         std::to_string(total_bytes()) + " are in use");
}

Status map_memory(int descriptor, uint64_t bytes, uint8_t** base) {
  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (mapped == MAP_FAILED) return fail_errno("mapping " + std::to_string(bytes) + " bytes");
  *base = static_cast<uint8_t*>(mapped);
  return Status::ok;
}

Status open_own(StandIn& device, uint64_t bytes, uint8_t** base) {
  int descriptor = -1;
  Status status = take_memory(device.ordinal, bytes, &descriptor);
  if (status != Status::ok) return status;
  status = map_memory(descriptor, bytes, base);
  if (status != Status::ok) {
    close(descriptor);
    return status;
  }
  const std::scoped_lock lock(device.mutex);
  device.own[*base] = descriptor;
  return Status::ok;
}

Status open_host(StandIn& device, const HalfSpec& spec, uint8_t** base) {
  const Status status = cpu_backend().open_half(device.cpu, &spec, base);
  if (status != Status::ok) return fail(status, cpu_backend().last_error());
  const std::scoped_lock lock(device.mutex);
  device.pinned[*base] = spec.bytes;
  return Status::ok;
}

Status open_held(const HalfSpec& spec, uint8_t** base) {
  HeldFile held;
  std::memcpy(&held, spec.ipc_handle, sizeof held);
  if (std::memcmp(held.magic, kMagic, sizeof kMagic) != 0) return fail(Status::failed, "not a handle of its memory");
  const std::string path = "/proc/" + std::to_string(held.pid) + "/fd/" + std::to_string(held.descriptor);
  const int descriptor = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (descriptor == -1) return fail_errno("opening memory that process " + std::to_string(held.pid) + " held");
  struct stat status;
  // The process and its descriptor may be others by now.
  const bool is_same = fstat(descriptor, &status) == 0 && status.st_ino == held.inode &&
                       static_cast<uint64_t>(status.st_size) >= spec.bytes;
  const Status mapped = is_same ? map_memory(descriptor, spec.bytes, base)
                                : fail(Status::failed, "the memory is not held any more, or is smaller");
  close(descriptor);
  return mapped;
}

Status hold(int ordinal, uint64_t bytes, uint8_t* ipc_handle) {
  return unless_lost([&] {
    int descriptor = -1;
    const Status status = take_memory(ordinal, bytes, &descriptor);
    if (status != Status::ok) return status;
    struct stat file;
    if (fstat(descriptor, &file) == -1) return fail_errno("looking at memory");
    HeldFile held = {{}, getpid(), descriptor, file.st_ino};
    std::memcpy(held.magic, kMagic, sizeof kMagic);
    std::memset(ipc_handle, 0, kIpcHandleBytes);
    std::memcpy(ipc_handle, &held, sizeof held);
    return Status::ok;
  });
}

Status open_half(Device* device, const HalfSpec* spec, uint8_t** base) {
  return unless_lost([&] {
    if (spec->kind == HalfKind::own) return open_own(stand_in(device), spec->bytes, base);
    if (spec->kind == HalfKind::host) return open_host(stand_in(device), *spec, base);
    if (spec->kind == HalfKind::held) return open_held(*spec, base);
    return fail(Status::failed, "it cannot map files");
  });
}

void close_half(Device* device, uint8_t* base, uint64_t bytes) {
  StandIn& self = stand_in(device);
  munmap(base, bytes);
  const std::scoped_lock lock(self.mutex);
  self.pinned.erase(base);
  const auto own = self.own.find(base);
  if (own == self.own.end()) return;
  close(own->second);
  self.own.erase(own);
}

// ---- The device

Status device_count(uint32_t* count) {
  return unless_lost([&] {
    *count = kDevices;
    return Status::ok;
  });
}

Status open_device(int ordinal, uint32_t lanes, Device** device) {
  if (ordinal < 0 || ordinal >= kDevices) {
    return fail(Status::failed, "there is no device " + std::to_string(ordinal) + ", there are " +
                                    std::to_string(kDevices));
  }
  Device* cpu = nullptr;
  const Status status = on_cpu([&](const Backend& backend) { return backend.open(0, lanes, &cpu); });
  if (status == Status::ok) *device = reinterpret_cast<Device*>(new StandIn{ordinal, cpu, {}, {}, {}});
  return status;
}

void close_device(Device* device) {
  cpu_backend().close(stand_in(device).cpu);
  delete &stand_in(device);
}

Status describe(Device* device, DeviceFacts* facts) {
  return unless_lost([&] {
    StandIn& self = stand_in(device);
    *facts = {};
    const std::string name = "stand-in device " + std::to_string(self.ordinal) + " (memory of the host)";
    name.copy(facts->name, sizeof facts->name - 1);
    std::copy_n(kUuid, sizeof facts->uuid - 1, facts->uuid);
    facts->uuid[sizeof facts->uuid - 1] = static_cast<uint8_t>(self.ordinal);
    facts->total_bytes = total_bytes();
    facts->free_bytes = facts->total_bytes - std::min(facts->total_bytes, used_bytes(self.ordinal));
    const std::scoped_lock lock(self.mutex);
    for (const auto& [base, bytes] : self.pinned) facts->pinned_bytes += bytes;
    return Status::ok;
  });
}

// ---- The work, which is the CPU's

Status fill(Device* device, uint32_t lane, uint8_t* at, uint64_t bytes, uint8_t value) {
  return on_cpu([&](const Backend& cpu) { return cpu.fill(stand_in(device).cpu, lane, at, bytes, value); });
}

Status pin(Device* device, const uint8_t* at, uint64_t bytes) {
  return unless_lost([&] {
    if (madvise(const_cast<uint8_t*>(at), bytes, MADV_POPULATE_READ) == -1) return fail_errno("pinning");
    const std::scoped_lock lock(stand_in(device).mutex);
    stand_in(device).pinned[at] = bytes;
    return Status::ok;
  });
}

void unpin(Device* device, const uint8_t* at) {
  const std::scoped_lock lock(stand_in(device).mutex);
  stand_in(device).pinned.erase(at);
}

Status begin_run(Device* device, const RunSpec* spec, Run** run) {
  return on_cpu([&](const Backend& cpu) { return cpu.begin_run(stand_in(device).cpu, spec, run); });
}

Status buffer(Run* run, uint32_t lane, uint64_t bytes, uint8_t** host) {
  return on_cpu([&](const Backend& cpu) { return cpu.buffer(run, lane, bytes, host); });
}

/// Copies as a device does: pages that a cut file has lost are an error, not a signal.
Status copy_rows(const HostRows& rows, uint8_t* to) {
  for (uint64_t row = 0; row < rows.rows; row++) {
    const iovec from = {const_cast<uint8_t*>(rows.at + row * rows.stride), rows.row_bytes};
    const iovec into = {to + row * rows.to_stride, rows.row_bytes};
    const ssize_t copied = process_vm_readv(getpid(), &into, 1, &from, 1, 0);
    if (copied != static_cast<ssize_t>(rows.row_bytes)) return fail_errno("fetching a row");
  }
  return Status::ok;
}

Status fetch(Run* run, uint32_t lane, const Tile* tile, const HostRows* rows, uint64_t count) {
  const uint64_t bytes = tile->rows * tile->cols * sizeof(float);  // enough for every dtype
  uint8_t* to = nullptr;
  Status status = buffer(run, lane, bytes, &to);
  if (status == Status::ok) std::memset(to, 0, bytes);
  for (uint64_t i = 0; i < count && status == Status::ok; i++) status = copy_rows(rows[i], to + rows[i].to);
  return status;
}

/// The tile itself; null: the one that the lane has fetched.
Status find_tile(Run* run, uint32_t lane, const uint8_t** host) {
  if (*host != nullptr) return Status::ok;
  uint8_t* fetched = nullptr;
  const Status status = buffer(run, lane, 0, &fetched);
  *host = fetched;
  return status;
}

Status measure(Run* run, uint32_t lane, const Tile* tile, const uint8_t* host) {
  const Status status = find_tile(run, lane, &host);
  if (status != Status::ok) return status;
  return on_cpu([&](const Backend& cpu) { return cpu.measure(run, lane, tile, host); });
}

Status put(Run* run, uint32_t lane, const Tile* tile, const uint8_t* host) {
  const Status status = find_tile(run, lane, &host);
  if (status != Status::ok) return status;
  return on_cpu([&](const Backend& cpu) { return cpu.put(run, lane, tile, host); });
}

Status derive(Run* run, uint32_t lane, const Derived* derived, uint64_t head) {
  return on_cpu([&](const Backend& cpu) { return cpu.derive(run, lane, derived, head); });
}

Status finish(Run* run, BadElements* bad, RunTotals* totals) {
  return on_cpu([&](const Backend& cpu) { return cpu.finish(run, bad, totals); });
}

void end_run(Run* run) { cpu_backend().end_run(run); }

Status exchange(Device* device, uint32_t lane, uint8_t* a, uint8_t* b, uint64_t bytes) {
  return on_cpu([&](const Backend& cpu) { return cpu.exchange(stand_in(device).cpu, lane, a, b, bytes); });
}

Status digest(Device* device, uint32_t lane, const uint8_t* base, uint64_t offset, uint64_t bytes, uint64_t* sum) {
  return on_cpu([&](const Backend& cpu) { return cpu.digest(stand_in(device).cpu, lane, base, offset, bytes, sum); });
}

Status read_back(Device* device, uint32_t lane, const uint8_t* from, uint64_t bytes, uint8_t* host) {
  return on_cpu([&](const Backend& cpu) { return cpu.read_back(stand_in(device).cpu, lane, from, bytes, host); });
}

constexpr Backend kStandIn = {
    .abi = kBackendAbi,
    .kind = "cuda",
    .tiles = {.tile_bytes = 512 << 10, .band_bytes = 2 << 20, .many_bands = false},
    .fetched_tiles = {.tile_bytes = 1 << 20, .band_bytes = 2 << 20, .many_bands = false},
    .part_bytes = 0,
    .device_count = device_count,
    .open = open_device,
    .close = close_device,
    .last_error = last_error,
    .describe = describe,
    .hold = hold,
    .open_half = open_half,
    .close_half = close_half,
    .fill = fill,
    .pin = pin,
    .unpin = unpin,
    .begin_run = begin_run,
    .buffer = buffer,
    .fetch = fetch,
    .measure = measure,
    .put = put,
    .derive = derive,
    .finish = finish,
    .end_run = end_run,
    .exchange = exchange,
    .digest = digest,
    .read_back = read_back,
};

}  // namespace
}  // namespace layercast

extern "C" __attribute__((visibility("default"))) const layercast::Backend* layercast_backend() {
  return &layercast::kStandIn;
}
