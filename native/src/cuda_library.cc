#include "cuda_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <system_error>

namespace layercast {
namespace {

constexpr const char* kFileName = "layercast_cuda.so";
constexpr const char* kEntryName = "layercast_backend";
constexpr const char* kPathVariable = "LAYERCAST_CUDA_LIBRARY";

CudaLibrary unavailable(const std::string& path, const std::string& sentence) { return {path, nullptr, sentence}; }

CudaLibrary open_own_library() {
  if (const char* chosen = std::getenv(kPathVariable); chosen != nullptr && *chosen != '\0') {
    return open_cuda_library(chosen);
  }
  const std::string path = (own_directory() / kFileName).string();
  if (std::error_code error; std::filesystem::exists(path, error)) return open_cuda_library(path);
  return unavailable(path, "built without CUDA: there is no " + path +
                               "; install the CUDA toolkit, so that nvcc is found, and build the native core again");
}

}  // namespace

std::filesystem::path own_directory() {
  Dl_info found = {};
  std::error_code error;
  if (dladdr(reinterpret_cast<const void*>(&own_directory), &found) != 0 && found.dli_fname != nullptr) {
    const std::filesystem::path file = std::filesystem::canonical(found.dli_fname, error);
    if (!error) return file.parent_path();
  }
  // An executable may be known by a name that was looked up in PATH.
  return std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
}

CudaLibrary open_cuda_library(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return unavailable(path, std::string("the CUDA backend cannot be loaded: ") + dlerror());
  const auto entry = reinterpret_cast<BackendEntry>(dlsym(library, kEntryName));
  if (entry == nullptr) return unavailable(path, path + " is not a backend: it does not export " + kEntryName);
  const Backend* backend = entry();
  if (backend->abi != kBackendAbi) {
    return unavailable(path, path + " has ABI " + std::to_string(backend->abi) + ", this build needs " +
                                 std::to_string(kBackendAbi) + ": build the native core again");
  }
  uint32_t devices = 0;
  if (backend->device_count(&devices) != Status::ok) return unavailable(path, backend->last_error());
  if (devices == 0) {
    return unavailable(path, "the driver shows no CUDA device: look at nvidia-smi and CUDA_VISIBLE_DEVICES");
  }
  return {path, backend, ""};
}

const CudaLibrary& cuda_library() {
  static const CudaLibrary library = open_own_library();
  return library;
}

}  // namespace layercast
