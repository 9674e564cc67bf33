#include "error.h"

#include <cerrno>
#include <cstring>

namespace layercast {

void throw_errno(const std::string& what, int error_number, uint64_t bytes) {
  const std::string message = what + " failed: " + std::strerror(error_number);
  if (error_number == ENOSPC || error_number == EDQUOT || error_number == ENOMEM || error_number == EFBIG) {
    throw NativeError(ErrorCode::out_of_memory, message, {{"bytes", static_cast<double>(bytes)}});
  }
  throw NativeError(ErrorCode::io, message, {{"errno", static_cast<double>(error_number)}});
}

}  // namespace layercast
