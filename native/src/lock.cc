#include "lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <thread>
#include <tuple>

#include "error.h"
#include "file.h"

namespace layercast {
namespace {

/// What is read of a holder's text at most.
constexpr size_t kHolderBytes = 1024;

/// Anything else than a regular file may not be lockable, or may let nobody read who holds it.
void check_regular(const File& file) {
  struct stat status;
  if (fstat(file.descriptor(), &status) == -1) throw_errno("looking at " + file.path(), errno);
  if (!S_ISREG(status.st_mode)) throw_errno("locking " + file.path() + ", which is no regular file", EINVAL);
}

void write_text(const File& file, const std::string& text) {
  if (ftruncate(file.descriptor(), 0) == -1) throw_errno("writing " + file.path(), errno);
  file.write_at(0, {reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

std::string read_text(const File& file) {
  std::array<uint8_t, kHolderBytes> bytes{};
  const uint64_t size = file.read_at(0, bytes);
  return {reinterpret_cast<const char*>(bytes.data()), size};
}

/// False where another has the lock.
bool try_flock(const File& file, LockKind kind) {
  if (flock(file.descriptor(), kind == LockKind::shared ? LOCK_SH | LOCK_NB : LOCK_EX | LOCK_NB) == 0) return true;
  if (errno != EWOULDBLOCK && errno != EINTR) throw_errno("locking " + file.path(), errno);
  return false;
}

}  // namespace

std::optional<std::string> acquire_lock(const std::string& path, const std::string& holder) {
  File file(path, O_RDWR | O_CREAT | O_NONBLOCK);
  check_regular(file);
  if (!try_flock(file, LockKind::exclusive)) return read_text(file);
  write_text(file, holder);
  file.leave_open();  // and so held
  return std::nullopt;
}

void share_lock(const std::string& path, uint64_t timeout_ms) {
  File file(path, O_RDWR | O_CREAT | O_NONBLOCK);
  check_regular(file);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  while (!try_flock(file, LockKind::shared)) {
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

FileLock::FileLock(const std::string& path) : file_(path, O_RDWR | O_CREAT | O_NONBLOCK) { check_regular(file_); }

/// Closing is not enough: a process that is being started has the descriptor too, until it runs its program.
FileLock::~FileLock() { std::ignore = flock(file_.descriptor(), LOCK_UN); }

bool FileLock::try_take(LockKind kind) { return try_flock(file_, kind); }

void FileLock::give_back() {
  if (flock(file_.descriptor(), LOCK_UN) == -1) throw_errno("unlocking " + file_.path(), errno);
}

}  // namespace layercast
