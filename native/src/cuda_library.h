// The CUDA backend is a shared object of its own, layercast_cuda.so, so that nothing else needs CUDA to build or to
// start. It lies beside the file that this code is in, or where LAYERCAST_CUDA_LIBRARY says.
#pragma once

#include <filesystem>
#include <string>

#include "backend.h"

namespace layercast {

struct CudaLibrary {
  std::string path;
  const Backend* backend;  // null: there is none here
  std::string unavailable;   // a sentence that says why
};

/// The directory of the executable or shared object that this code is in.
std::filesystem::path own_directory();

/// Opens the library at `path` and asks it for devices; touches none of them. The library is never closed.
CudaLibrary open_cuda_library(const std::string& path);

/// The library of this process, opened when it is first asked for.
const CudaLibrary& cuda_library();

}  // namespace layercast
