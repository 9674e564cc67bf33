// What the suite's files share: the backend that is asked, and the count of what held. A law is a named body that
// throws what did not hold.
#pragma once

#include <cstdint>
#include <functional>
#include <iostream>
#include <stdexcept>
#include <string>

#include "backend.h"
#include "thread_pool.h"

namespace layercast::conformance {

struct Options {
  std::string backend = "cuda";
  int device = 0;
  bool quick = false;
  std::string scheme;  // this one alone; empty: all
  bool bench = false;
};

class Score {
 public:
  void law(const std::string& name, const std::function<void()>& body) {
    try {
      body();
      passed_++;
    } catch (const std::exception& error) {
      failed_++;
      if (failed_ <= kPrinted) std::cout << "FAILED " << name << ": " << error.what() << std::endl;
    }
  }
  uint64_t passed() const { return passed_; }
  uint64_t failed() const { return failed_; }

 private:
  static constexpr uint64_t kPrinted = 20;
  uint64_t passed_ = 0;
  uint64_t failed_ = 0;
};

inline void require(bool holds, const std::string& sentence) {
  if (!holds) throw std::runtime_error(sentence);
}

/// A backend with a device that is open, and threads for its lanes.
struct Subject {
  const Backend& backend;
  Device* device;
  ThreadPool& pool;

  void check(Status status) const { require(status == Status::ok, backend.last_error()); }
  bool is_cpu() const { return &backend == &cpu_backend(); }
};

/// A half of the subject's, closed with its scope.
class OpenHalf {
 public:
  OpenHalf(const Subject& subject, HalfKind kind, uint64_t bytes, const uint8_t* ipc_handle = nullptr)
      : subject_(subject), bytes_(bytes) {
    const HalfSpec spec = {kind, bytes, -1, 0, ipc_handle};
    subject.check(subject.backend.open_half(subject.device, &spec, &base_));
  }
  ~OpenHalf() { subject_.backend.close_half(subject_.device, base_, bytes_); }
  OpenHalf(const OpenHalf&) = delete;
  OpenHalf& operator=(const OpenHalf&) = delete;

  uint8_t* base() const { return base_; }
  uint64_t bytes() const { return bytes_; }

 private:
  const Subject& subject_;
  uint64_t bytes_;
  uint8_t* base_ = nullptr;
};

// One file, one part of the suite.
void check_recipes(const Subject& subject, const Options& options, Score& score);
void check_conversions(const Subject& subject, const Options& options, Score& score);
void check_derived(const Subject& subject, Score& score);
void check_fetching(const Subject& subject, Score& score);
void check_runs(const Subject& subject, Score& score);
void check_memory(const Subject& subject, Score& score);
void check_held_memory(const Subject& subject, const Options& options, Score& score);
void check_large(const Subject& subject, Score& score);
void bench(const Subject& subject);

/// What this executable does as the second process that holds memory.
int hold_memory(const Backend& backend, int device, uint64_t bytes);

}  // namespace layercast::conformance
