// The core's threads, shared by all that is in flight. A task posted here may spread work over the others with each():
// it takes part itself and waits only for pieces that are already running, so tasks can never wait for each other.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

namespace layercast {

/// Set by the caller, polled between pieces of work. Cancelling a parent cancels its children.
class CancelToken {
 public:
  explicit CancelToken(std::shared_ptr<const CancelToken> parent = nullptr) : parent_(std::move(parent)) {}

  void cancel() { cancelled_.store(true, std::memory_order_relaxed); }
  bool cancelled() const {
    return cancelled_.load(std::memory_order_relaxed) || (parent_ != nullptr && parent_->cancelled());
  }
  /// Throws cancelled.
  void check() const;

 private:
  std::shared_ptr<const CancelToken> parent_;
  std::atomic<bool> cancelled_ = false;
};

class ThreadPool {
 public:
  using Piece = std::function<void(uint64_t index, uint32_t lane)>;

  explicit ThreadPool(uint32_t threads);
  /// Lets posted tasks end, then joins.
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  uint32_t threads() const { return static_cast<uint32_t>(threads_.size()); }
  /// One a thread, and one for the single outside thread that may call each().
  uint32_t lanes() const { return threads() + 1; }

  /// The threads run on these CPUs from now on, as far as the process may use them; where it may use none of them, the
  /// threads stay as they are.
  void stay_on(std::span<const int> cpus);

  void post(std::function<void()> task);

  /// Calls piece(0 .. count - 1), in any order, on all threads; returns, or throws, once none is running any more. A
  /// piece that throws ends it, and so does the token (cancelled), if there is one.
  void each(uint64_t count, const CancelToken* cancel, const Piece& piece);

 private:
  void run_tasks(uint32_t lane);
  uint32_t current_lane() const;

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

/// LAYERCAST_THREADS, or as many as the machine has.
uint32_t default_thread_count();

}  // namespace layercast
