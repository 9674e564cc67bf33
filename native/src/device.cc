#include "device.h"

#include <chrono>
#include <cstring>
#include <numeric>

#include "cuda_library.h"
#include "error.h"
#include "host_memory.h"
#include "text.h"

namespace layercast {
namespace {

constexpr const char* kCuda = "cuda";

/// As many layers are loaded at one time. Measured on H100s: two lanes are slower, most of all where two GPUs share a
/// host, as a copy's end is not heard of at once; more gain nothing.
constexpr uint32_t kFetchLanes = 4;
constexpr std::chrono::milliseconds kLookForCancel{20};

ErrorDetails ordinal_details(int ordinal) { return {{"ordinal", static_cast<double>(ordinal)}}; }

/// "cuda" and "cuda:0" -> 0.
int cuda_ordinal(const std::string& name) {
  if (name == kCuda) return 0;
  const std::string prefix = std::string(kCuda) + ":";
  if (!name.starts_with(prefix)) throw_invalid("a device is cpu, cuda or cuda:N, not " + name);
  return static_cast<int>(number_from_text<uint16_t>(name.substr(prefix.size()), "the number in " + name));
}

}  // namespace

FetchLanes::FetchLanes(uint32_t first, uint32_t count) : free_(count) {
  std::iota(free_.rbegin(), free_.rend(), first);
}

uint32_t FetchLanes::take(const CancelToken& cancel) {
  std::unique_lock lock(mutex_);
  while (!given_back_.wait_for(lock, kLookForCancel, [this] { return !free_.empty(); })) cancel.check();
  const uint32_t lane = free_.back();
  free_.pop_back();
  return lane;
}

void FetchLanes::give_back(uint32_t lane) {
  {
    const std::lock_guard lock(mutex_);
    free_.push_back(lane);
  }
  given_back_.notify_one();
}

OpenDevice::OpenDevice(const Backend& backend, int ordinal, uint32_t lanes)
    : backend_(backend), ordinal_(ordinal), fetch_lanes_(lanes, kFetchLanes) {
  const Status status = backend.open(ordinal, lanes + kFetchLanes, &handle_);
  if (status == Status::failed) throw_no_device();
  check(status);
  pinned_sources_ = std::make_unique<PinnedSources>(backend_, handle_);
}

OpenDevice::~OpenDevice() {
  pinned_sources_ = nullptr;
  backend_.close(handle_);
}

bool OpenDevice::is_cpu() const { return std::strcmp(backend_.kind, "cpu") == 0; }

DeviceFacts OpenDevice::facts() const {
  DeviceFacts facts = {};
  check(backend_.describe(handle_, &facts));
  return facts;
}

void OpenDevice::check(Status status, uint64_t bytes, HalfKind kind) const {
  if (status == Status::ok) return;
  if (status == Status::out_of_memory) throw_out_of_memory(bytes, kind);
  if (status == Status::device_lost) throw_no_device();
  throw NativeError(ErrorCode::io, backend_.last_error(), {{"errno", 0.0}});
}

void OpenDevice::throw_no_device() const {
  throw NativeError(ErrorCode::no_device, backend_.last_error(), ordinal_details(ordinal_));
}

void OpenDevice::throw_out_of_memory(uint64_t bytes, HalfKind kind) const {
  const std::string sentence = backend_.last_error();  // before describe may say another
  ErrorDetails details = {{"bytes", static_cast<double>(bytes)}};
  DeviceFacts facts = {};
  if (kind == HalfKind::host) {
    details.emplace_back("freeBytes", static_cast<double>(available_host_bytes()));
  } else if (handle_ != nullptr && backend_.describe(handle_, &facts) == Status::ok) {
    details.emplace_back("freeBytes", static_cast<double>(facts.free_bytes));
  }
  throw NativeError(ErrorCode::out_of_memory, sentence, details);
}

std::shared_ptr<OpenDevice> open_device(const std::string& name, uint32_t lanes) {
  if (name == "cpu") return std::make_shared<OpenDevice>(cpu_backend(), 0, lanes);
  const int ordinal = cuda_ordinal(name);
  const CudaLibrary& library = cuda_library();
  if (library.backend == nullptr) {
    throw NativeError(ErrorCode::no_device, library.unavailable, ordinal_details(ordinal));
  }
  return std::make_shared<OpenDevice>(*library.backend, ordinal, lanes);
}

}  // namespace layercast
