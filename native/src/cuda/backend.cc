// A CUDA device meets backend.h: halves are its memory or pinned memory of the host, tiles are queued.
#include "../backend.h"

#include <cstring>
#include <string>
#include <utility>

#include "device.h"
#include "failure.h"
#include "kernels.h"
#include "run.h"

namespace layercast {
namespace {

/// Small allocations share memory of the driver's, which another process would then see whole.
constexpr uint64_t kHeldAlignment = 2 << 20;

static_assert(sizeof(cudaIpcMemHandle_t) == kIpcHandleBytes);

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

/// Runs the body with the device chosen for this thread.
template <class Body>
Status on_device(Device* device, const Body& body) {
  return guard([&] {
    use_device(device->ordinal);
    body();
  });
}

Status device_count(uint32_t* count) {
  return guard([&] {
    int driver = 0, runtime = 0, devices = 0;
    check(cudaDriverGetVersion(&driver), "asking for the driver's version");
    check(cudaRuntimeGetVersion(&runtime), "asking for the runtime's version");
    if (driver == 0) throw Failure{Status::failed, "this host has no NVIDIA driver: install one, then start again"};
    const cudaError_t error = cudaGetDeviceCount(&devices);
    if (error == cudaErrorInsufficientDriver) {
      cudaGetLastError();
      throw Failure{Status::failed, "the NVIDIA driver is too old: it knows CUDA " + version_text(driver) +
                                        ", this build needs " + version_text(runtime) + ": install a newer driver"};
    }
    if (error != cudaErrorNoDevice) check(error, "counting devices");
    cudaGetLastError();
    *count = static_cast<uint32_t>(devices);
  });
}

Status open_device(int ordinal, uint32_t lanes, Device** device) {
  return guard([&] { *device = new Device(ordinal, lanes); });
}

void close_device(Device* device) {
  on_device(device, [&] { delete device; });
}

Status describe(Device* device, DeviceFacts* facts) {
  return on_device(device, [&] {
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, device->ordinal), "looking at the device");
    size_t free_bytes = 0, total_bytes = 0;
    check(cudaMemGetInfo(&free_bytes, &total_bytes), "looking at the device's memory");
    *facts = {};
    std::memcpy(facts->name, properties.name, strnlen(properties.name, sizeof facts->name - 1));
    std::memcpy(facts->uuid, properties.uuid.bytes, sizeof facts->uuid);
    check(cudaDeviceGetPCIBusId(facts->pci_address, sizeof facts->pci_address, device->ordinal), "looking at the device");
    facts->total_bytes = total_bytes;
    facts->free_bytes = free_bytes;
    facts->pinned_bytes = device->pinned_bytes;
  });
}

Status hold(int ordinal, uint64_t bytes, uint8_t* ipc_handle) {
  return guard([&] {
    use_device(ordinal);
    DeviceMemory memory = allocate_device(ceil_div(bytes, kHeldAlignment) * kHeldAlignment);
    cudaIpcMemHandle_t handle;
    check(cudaIpcGetMemHandle(&handle, memory.get()), "making memory known to other processes");
    std::memcpy(ipc_handle, &handle, sizeof handle);
    memory.release();  // the process's end frees it
  });
}

// ---- Halves

Half make_half(Device& device, const HalfSpec& spec, uint8_t** base) {
  Half half = {spec.kind, {}, {}};
  if (spec.kind == HalfKind::file) {
    throw Failure{Status::failed, "a CUDA device cannot map a file as a half of its arena"};
  }
  if (spec.kind == HalfKind::own) {
    half.own = allocate_device(spec.bytes);
    *base = half.own.get();
    return half;
  }
  if (spec.kind == HalfKind::host) {
    half.host = PinnedMemory(spec.bytes, device.pinned_bytes);
    void* for_kernels = nullptr;
    check(cudaHostGetDevicePointer(&for_kernels, half.host.data(), 0), "showing pinned memory to kernels");
    if (for_kernels != half.host.data()) {
      throw Failure{Status::failed, "kernels see pinned memory at another address, so a half cannot be in the host's"};
    }
    *base = half.host.data();
    return half;
  }
  cudaIpcMemHandle_t handle;
  std::memcpy(&handle, spec.ipc_handle, sizeof handle);
  void* opened = nullptr;
  check(cudaIpcOpenMemHandle(&opened, handle, cudaIpcMemLazyEnablePeerAccess),
        "opening memory that another process holds");
  *base = static_cast<uint8_t*>(opened);
  return half;
}

Status open_half(Device* device, const HalfSpec* spec, uint8_t** base) {
  return on_device(device, [&] {
    Half half = make_half(*device, *spec, base);
    const std::lock_guard lock(device->mutex);
    device->halves.insert_or_assign(*base, std::move(half));
  });
}

void close_half(Device* device, uint8_t* base, uint64_t) {
  on_device(device, [&] {
    const std::lock_guard lock(device->mutex);
    const auto found = device->halves.find(base);
    if (found == device->halves.end()) return;
    if (found->second.kind == HalfKind::held) cudaIpcCloseMemHandle(base);
    device->halves.erase(found);
  });
}

Status fill(Device* device, uint32_t lane, uint8_t* at, uint64_t bytes, uint8_t value) {
  return on_device(device, [&] {
    cudaStream_t stream = stream_of(device->lanes[lane]);
    check(cudaMemsetAsync(at, value, bytes, stream), "filling memory");
    check(cudaStreamSynchronize(stream), "filling memory");
  });
}

// ---- Pinned sources

/// Pages of a mapping that cannot be written can only be pinned for reading, which not every system can do.
void register_pages(int ordinal, const uint8_t* at, uint64_t bytes) {
  int can_pin_read_only = 0;
  check(cudaDeviceGetAttribute(&can_pin_read_only, cudaDevAttrHostRegisterReadOnlySupported, ordinal),
        "looking at the device");
  const unsigned flags = cudaHostRegisterMapped | (can_pin_read_only ? cudaHostRegisterReadOnly : 0);
  void* pages = const_cast<uint8_t*>(at);
  cudaError_t error = cudaHostRegister(pages, bytes, flags);
  if (error == cudaErrorNotSupported || error == cudaErrorInvalidValue) {
    cudaGetLastError();
    error = cudaHostRegister(pages, bytes, cudaHostRegisterDefault);
  }
  check(error, "pinning mapped memory");
}

Status pin(Device* device, const uint8_t* at, uint64_t bytes) {
  return on_device(device, [&] {
    register_pages(device->ordinal, at, bytes);
    device->pinned_bytes += bytes;
    const std::lock_guard lock(device->mutex);
    device->pins.insert_or_assign(at, bytes);
  });
}

void unpin(Device* device, const uint8_t* at) {
  on_device(device, [&] {
    const std::lock_guard lock(device->mutex);
    const auto found = device->pins.find(at);
    if (found == device->pins.end()) return;
    cudaHostUnregister(const_cast<uint8_t*>(at));
    device->pinned_bytes -= found->second;
    device->pins.erase(found);
  });
}

// ---- Runs

Status begin_run(Device* device, const RunSpec* spec, Run** run) {
  return on_device(device, [&] { *run = new Run(*device, *spec); });
}

Status buffer(Run* run, uint32_t lane, uint64_t bytes, uint8_t** host) {
  return on_device(&run->device, [&] { *host = buffer(*run, lane, bytes); });
}

Status fetch(Run* run, uint32_t lane, const Tile* tile, const HostRows* rows, uint64_t count) {
  return on_device(&run->device, [&] { fetch(*run, lane, *tile, rows, count); });
}

Status measure(Run* run, uint32_t lane, const Tile* tile, const uint8_t* host) {
  return on_device(&run->device, [&] { measure(*run, lane, *tile, host); });
}

Status put(Run* run, uint32_t lane, const Tile* tile, const uint8_t* host) {
  return on_device(&run->device, [&] { put(*run, lane, *tile, host); });
}

Status derive_head(Run* run, uint32_t lane, const Derived* derived, uint64_t head) {
  return on_device(&run->device, [&] { derive(*run, lane, *derived, head); });
}

Status finish(Run* run, BadElements* bad, RunTotals* totals) {
  return on_device(&run->device, [&] { finish(*run, bad, *totals); });
}

void end_run(Run* run) {
  on_device(&run->device, [&] { delete run; });
}

// ---- Bytes of halves

Status exchange(Device* device, uint32_t lane, uint8_t* a, uint8_t* b, uint64_t bytes) {
  return on_device(device, [&] {
    cudaStream_t stream = stream_of(device->lanes[lane]);
    launch_exchange(a, b, bytes, {stream, device->multiprocessors});
    check_launch("exchanging bytes");
    check(cudaStreamSynchronize(stream), "exchanging bytes");
  });
}

Status digest(Device* device, uint32_t index, const uint8_t* base, uint64_t offset, uint64_t bytes, uint64_t* sum) {
  return on_device(device, [&] {
    Lane& lane = device->lanes[index];
    cudaStream_t stream = stream_of(lane);
    if (lane.digest == nullptr) lane.digest = allocate_device(sizeof *sum);
    check(cudaMemsetAsync(lane.digest.get(), 0, sizeof *sum, stream), "digesting bytes");
    launch_digest(base, offset, bytes, reinterpret_cast<unsigned long long*>(lane.digest.get()),
                  {stream, device->multiprocessors});
    check_launch("digesting bytes");
    check(cudaMemcpyAsync(sum, lane.digest.get(), sizeof *sum, cudaMemcpyDeviceToHost, stream), "digesting bytes");
    check(cudaStreamSynchronize(stream), "digesting bytes");
  });
}

Status read_back(Device* device, uint32_t lane, const uint8_t* from, uint64_t bytes, uint8_t* host) {
  return on_device(device, [&] {
    cudaStream_t stream = stream_of(device->lanes[lane]);
    check(cudaMemcpyAsync(host, from, bytes, cudaMemcpyDefault, stream), "reading memory");
    check(cudaStreamSynchronize(stream), "reading memory");
  });
}

constexpr Backend kCudaBackend = {
    .abi = kBackendAbi,
    .kind = "cuda",
    .tiles = {.tile_bytes = kTileBytes, .band_bytes = kTileBytes, .many_bands = true},
    .fetched_tiles = {.tile_bytes = kFetchedTileBytes, .band_bytes = kFetchedTileBytes, .many_bands = true},
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
    .derive = derive_head,
    .finish = finish,
    .end_run = end_run,
    .exchange = exchange,
    .digest = digest,
    .read_back = read_back,
};

}  // namespace
}  // namespace layercast

extern "C" __attribute__((visibility("default"))) const layercast::Backend* layercast_backend() {
  return &layercast::kCudaBackend;
}
