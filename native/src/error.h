// The one exception of the core: a stable code (NATIVE_ERRORS in native.ts, in the same order), a sentence with the
// values, and the facts as numbers. addon.cc turns it into a JS error.
#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace layercast {

enum class ErrorCode {
  invalid_argument,
  source_changed,
  source_not_found,
  io,
  non_finite,
  not_positive,
  out_of_memory,
  cancelled,
  no_device,
  scales_differ,
};

inline constexpr std::array<std::string_view, 10> kErrorCodes = {
    "NATIVE_INVALID_ARGUMENT",
    "NATIVE_SOURCE_CHANGED",
    "NATIVE_SOURCE_NOT_FOUND",
    "NATIVE_IO",
    "NATIVE_NON_FINITE",
    "NATIVE_NOT_POSITIVE",
    "NATIVE_OUT_OF_MEMORY",
    "NATIVE_CANCELLED",
    "NATIVE_NO_DEVICE",
    "NATIVE_SCALES_DIFFER",
};

using ErrorDetails = std::vector<std::pair<std::string, double>>;

class NativeError : public std::runtime_error {
 public:
  NativeError(ErrorCode code, const std::string& message, ErrorDetails details = {})
      : std::runtime_error(message), code(code), details(std::move(details)) {}

  std::string_view code_name() const { return kErrorCodes[static_cast<size_t>(code)]; }

  const ErrorCode code;
  const ErrorDetails details;
};

[[noreturn]] inline void throw_invalid(const std::string& message) {
  throw NativeError(ErrorCode::invalid_argument, message);
}

/// Throws out_of_memory where `error_number` says so, else io; `what` is what failed, such as "writing /a/b".
[[noreturn]] void throw_errno(const std::string& what, int error_number, uint64_t bytes = 0);

}  // namespace layercast
