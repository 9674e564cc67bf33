#include "lock.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <thread>

#include "error.h"
#include "file.h"

namespace layercast {
namespace {

constexpr int kTries = 1000;

void write_own_pid(const File& file) {
  const std::string text = std::to_string(getpid()) + "\n";
  if (ftruncate(file.descriptor(), 0) == -1) throw_errno("writing " + file.path(), errno);
  file.write_at(0, {reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

/// 0 where the file names no process that lives: its holder has not written yet.
int read_living_pid(const File& file) {
  std::array<uint8_t, 32> bytes{};
  const uint64_t size = file.read_at(0, bytes);
  const char* text = reinterpret_cast<const char*>(bytes.data());
  int pid = 0;
  std::from_chars(text, text + size, pid);
  if (pid <= 0) return 0;
  return kill(pid, 0) == -1 && errno == ESRCH ? 0 : pid;
}

/// False where another has the lock.
bool try_flock(const File& file, int operation) {
  if (flock(file.descriptor(), operation | LOCK_NB) == 0) return true;
  if (errno != EWOULDBLOCK && errno != EINTR) throw_errno("locking " + file.path(), errno);
  return false;
}

}  // namespace

int acquire_lock(const std::string& path) {
  File file(path, O_RDWR | O_CREAT);
  for (int tries = 0; tries < kTries; tries++) {
    if (try_flock(file, LOCK_EX)) {
      write_own_pid(file);
      file.leave_open();  // and so held
      return 0;
    }
    // Between a holder's lock and its id the file is empty, or names a dead one.
    if (const int pid = read_living_pid(file); pid != 0) return pid;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  throw NativeError(ErrorCode::io, path + " is locked by a process that it does not name", {{"errno", EWOULDBLOCK}});
}

void share_lock(const std::string& path, int timeout_ms) {
  File file(path, O_RDWR | O_CREAT);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  while (!try_flock(file, LOCK_SH)) {
    if (std::chrono::steady_clock::now() >= deadline) {
      throw NativeError(ErrorCode::io,
                        path + " was locked by another process for " + std::to_string(timeout_ms) +
                            " ms: look with fuser " + path + " for who it is",
                        {{"errno", EWOULDBLOCK}});
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  file.leave_open();  // and so held
}

}  // namespace layercast
