#include "failure.h"

namespace layercast {
namespace {

thread_local std::string last_sentence;

/// After one of these every call of this process fails, whatever it asks for: the list is that of CUDA's documentation.
bool is_final(cudaError_t error) {
  switch (error) {
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorMisalignedAddress:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorUnknown:
      return true;
    default:
      return false;
  }
}

}  // namespace

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  // Taken back, so that the next launch of this thread is not blamed for it. An error that is final stays.
  cudaGetLastError();
  const std::string sentence = std::string(what) + " failed on the CUDA device: " + cudaGetErrorString(error) + " (" +
                               cudaGetErrorName(error) + ")";
  if (is_final(error)) throw Failure{Status::device_lost, sentence + "; only a new process can use the device again"};
  throw Failure{error == cudaErrorMemoryAllocation ? Status::out_of_memory : Status::failed, sentence};
}

void check_launch(const char* what) { check(cudaGetLastError(), what); }

const char* last_error() { return last_sentence.c_str(); }

Status fail(const Failure& failure) {
  last_sentence = failure.sentence;
  return failure.status;
}

}  // namespace layercast
