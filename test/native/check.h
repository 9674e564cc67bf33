// The test harness: a LAW is a named test, a CHECK in it that fails is printed and the law goes on.
#pragma once

#include <cstdint>
#include <functional>
#include <iostream>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "error.h"

namespace layercast::test {

struct Law {
  const char* name;
  void (*body)();
};

inline std::vector<Law>& laws() {
  static std::vector<Law> all;
  return all;
}

struct Register {
  Register(const char* name, void (*body)()) { laws().push_back({name, body}); }
};

/// Failures of the law that runs now; only the first few are printed.
inline int failures = 0;
inline constexpr int kPrintedFailures = 5;

inline void report_failure(const char* file, int line, const std::string& what) {
  if (++failures <= kPrintedFailures) std::cout << "  " << file << ":" << line << ": " << what << "\n";
}

template <class A, class B>
void check_equal(const char* file, int line, const char* text, const A& actual, const B& expected) {
  if (actual == expected) return;
  std::ostringstream message;
  message << text << " is " << actual << ", not " << expected;
  report_failure(file, line, message.str());
}

/// Runs the body and returns the error it throws; a body that throws none fails the law.
inline NativeError error_of(const char* file, int line, const std::function<void()>& body) {
  try {
    body();
  } catch (const NativeError& error) {
    return error;
  }
  report_failure(file, line, "nothing was thrown");
  return NativeError(ErrorCode::io, "nothing was thrown");
}

inline double detail(const NativeError& error, std::string_view name) {
  for (const auto& [key, value] : error.details) {
    if (key == name) return value;
  }
  return -1;
}

}  // namespace layercast::test

#define LAYERCAST_JOIN_(a, b) a##b
#define LAYERCAST_JOIN(a, b) LAYERCAST_JOIN_(a, b)
#define LAW(name)                                                                       \
  static void LAYERCAST_JOIN(law_, __LINE__)();                                         \
  static const layercast::test::Register LAYERCAST_JOIN(register_, __LINE__)(           \
      name, LAYERCAST_JOIN(law_, __LINE__));                                            \
  static void LAYERCAST_JOIN(law_, __LINE__)()

#define CHECK(condition)                                                                \
  do {                                                                                  \
    if (!(condition)) layercast::test::report_failure(__FILE__, __LINE__, #condition);  \
  } while (false)
#define CHECK_EQUAL(actual, expected) layercast::test::check_equal(__FILE__, __LINE__, #actual, actual, expected)
#define ERROR_OF(...) layercast::test::error_of(__FILE__, __LINE__, [&] { __VA_ARGS__; })
