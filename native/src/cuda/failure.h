// What goes wrong in this folder is thrown as a Failure and caught at the table's edge: nothing leaves it but a status
// and a sentence.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <new>
#include <string>

#include "../backend.h"

namespace layercast {

struct Failure {
  Status status;
  std::string sentence;
};

/// Throws unless the call succeeded; `what` is what it did, such as "copying a tile".
void check(cudaError_t error, const char* what);

/// The same of the launch of a kernel that came before.
void check_launch(const char* what);

/// This thread's last sentence.
const char* last_error();
Status fail(const Failure& failure);

/// Runs the body; what it throws becomes a status.
template <class Body>
Status guard(const Body& body) {
  try {
    body();
    return Status::ok;
  } catch (const Failure& failure) {
    return fail(failure);
  } catch (const std::bad_alloc&) {
    return fail({Status::out_of_memory, "this process has no memory left for the backend's own tables"});
  }
}

}  // namespace layercast
