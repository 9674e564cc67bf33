#include "thread_pool.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <utility>

#include "error.h"

namespace layercast {
namespace {

constexpr uint32_t kMaxThreads = 1024;

thread_local const ThreadPool* lane_owner = nullptr;
thread_local uint32_t lane_number = 0;

/// What is shared by the threads that take pieces of one each(). Threads that come late find none left.
struct Pieces {
  Pieces(uint64_t count, const CancelToken* cancel, const ThreadPool::Piece& piece)
      : count(count), cancel(cancel), piece(piece) {}

  void take(uint32_t lane) {
    std::unique_lock lock(mutex);
    while (next < count && !failure) {
      const uint64_t index = next++;
      running++;
      lock.unlock();
      std::exception_ptr thrown;
      try {
        if (cancel != nullptr) cancel->check();
        piece(index, lane);
      } catch (...) {
        thrown = std::current_exception();
      }
      lock.lock();
      if (thrown && !failure) failure = thrown;
      running--;
    }
    if (running == 0) done.notify_all();
  }

  void wait_and_rethrow() {
    std::unique_lock lock(mutex);
    done.wait(lock, [this] { return running == 0 && (next == count || failure); });
    next = count;
    // Taken out of what is shared, so that the error lives and ends on this thread alone.
    const std::exception_ptr thrown = std::exchange(failure, nullptr);
    lock.unlock();
    if (thrown) std::rethrow_exception(thrown);
  }

  const uint64_t count;
  const CancelToken* const cancel;
  const ThreadPool::Piece& piece;  // valid while the caller waits, so while any piece can still be taken
  std::mutex mutex;
  std::condition_variable done;
  uint64_t next = 0;
  uint64_t running = 0;
  std::exception_ptr failure;
};

}  // namespace

void CancelToken::check() const {
  if (cancelled()) throw NativeError(ErrorCode::cancelled, "the work was cancelled");
}

ThreadPool::ThreadPool(uint32_t threads) {
  for (uint32_t lane = 0; lane < threads; lane++) {
    threads_.emplace_back([this, lane] { run_tasks(lane); });
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::stay_on(std::span<const int> cpus) {
  cpu_set_t allowed, wanted;
  if (sched_getaffinity(getpid(), sizeof allowed, &allowed) == -1) return;
  CPU_ZERO(&wanted);
  for (const int cpu : cpus) {
    if (cpu < CPU_SETSIZE) CPU_SET(cpu, &wanted);
  }
  CPU_AND(&wanted, &wanted, &allowed);
  if (CPU_COUNT(&wanted) == 0) return;
  // It is for speed only: where it is refused, threads stay as they are.
  for (std::thread& thread : threads_) pthread_setaffinity_np(thread.native_handle(), sizeof wanted, &wanted);
}

void ThreadPool::post(std::function<void()> task) {
  {
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
  }
  wake_.notify_one();
}

void ThreadPool::each(uint64_t count, const CancelToken* cancel, const Piece& piece) {
  const auto pieces = std::make_shared<Pieces>(count, cancel, piece);
  const uint64_t helpers = count == 0 ? 0 : std::min<uint64_t>(count - 1, threads());
  try {
    for (uint64_t i = 0; i < helpers; i++) {
      post([this, pieces] { pieces->take(current_lane()); });
    }
  } catch (const std::bad_alloc&) {  // NOLINT(bugprone-empty-catch)
    // Those already posted refer to `piece`: go on with fewer.
  }
  pieces->take(current_lane());
  pieces->wait_and_rethrow();
}

void ThreadPool::run_tasks(uint32_t lane) {
  lane_owner = this;
  lane_number = lane;
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stopping_ || !tasks_.empty(); });
    if (tasks_.empty()) return;
    std::function<void()> task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    task();
    task = nullptr;  // what it held goes before the lock is taken again
    lock.lock();
  }
}

uint32_t ThreadPool::current_lane() const { return lane_owner == this ? lane_number : threads(); }

uint32_t default_thread_count() {
  if (const char* text = std::getenv("LAYERCAST_THREADS")) {
    char* end = nullptr;
    const unsigned long count = std::strtoul(text, &end, 10);
    if (end != text && *end == '\0' && count >= 1 && count <= kMaxThreads) return static_cast<uint32_t>(count);
    throw_invalid(std::string("LAYERCAST_THREADS must be a number from 1 to 1024, not ") + text);
  }
  return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace layercast
