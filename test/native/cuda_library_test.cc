// Opening the CUDA backend's shared object: every reason why there is none is one sentence.
#include "cuda_library.h"

#include "check.h"

using namespace layercast;

namespace {

bool says(const CudaLibrary& library, const std::string& part) {
  return library.backend == nullptr && library.unavailable.find(part) != std::string::npos;
}

}  // namespace

LAW("a library that is not there, or is no backend, is refused by its name") {
  CHECK(says(open_cuda_library("/nowhere/layercast_cuda.so"), "/nowhere/layercast_cuda.so"));
  CHECK(says(open_cuda_library("libm.so.6"), "libm.so.6 is not a backend"));
}

LAW("a library whose driver shows devices is opened") {
  const CudaLibrary library = open_cuda_library(LAYERCAST_STAND_IN);
  CHECK(library.backend != nullptr);
  CHECK_EQUAL(library.unavailable, "");
  CHECK_EQUAL(library.path, LAYERCAST_STAND_IN);
}

LAW("the library lies in the directory of what this code is in") {
  CHECK(std::filesystem::equivalent(own_directory(), std::filesystem::path(LAYERCAST_STAND_IN).parent_path()));
}
