// The locks between two processes.
#include "lock.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>

#include "check.h"
#include "file.h"
#include "support.h"

using namespace layercast;
using namespace layercast::test;

namespace {

/// Another process that takes a lock and keeps it until it is killed.
class OtherProcess {
 public:
  explicit OtherProcess(const std::function<bool()>& take) {
    int ready[2];
    CHECK_EQUAL(pipe(ready), 0);
    pid_ = fork();
    if (pid_ == 0) live(take, ready[1]);
    close(ready[1]);
    char taken = 0;
    CHECK_EQUAL(read(ready[0], &taken, 1), 1);
    CHECK_EQUAL(taken, 'y');
    close(ready[0]);
  }
  ~OtherProcess() { end(); }
  OtherProcess(const OtherProcess&) = delete;
  OtherProcess& operator=(const OtherProcess&) = delete;

  pid_t pid() const { return pid_; }
  void end() {
    if (pid_ == 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }

 private:
  /// What the forked process does; it must not come back into the laws.
  [[noreturn]] static void live(const std::function<bool()>& take, int ready) {
    char taken = 'n';
    try {
      if (take()) taken = 'y';
    } catch (const NativeError&) {
    }
    const ssize_t written = write(ready, &taken, 1);
    while (written == 1) pause();
    _exit(1);
  }

  pid_t pid_ = 0;
};

/// Whether nobody has the lock, as a holder finds out.
bool is_free(const std::string& path) {
  const File file(path, O_RDWR);
  return flock(file.descriptor(), LOCK_EX | LOCK_NB) == 0;
}

}  // namespace

LAW("a lock is one process's until that process ends, and its file names it") {
  TemporaryDirectory directory;
  const std::string path = directory / "lock";
  write_file(path, {'9', '9', '9', '9', '9', '9', '9', '9', '9', '\n'});  // a pid that cannot be, from long ago
  OtherProcess holder([&] { return !acquire_lock(path, "the other").has_value(); });
  CHECK_EQUAL(acquire_lock(path, "me").value_or(""), "the other");
  holder.end();
  CHECK_EQUAL(acquire_lock(path, "me").has_value(), false);
  const ByteVector bytes = read_file(path);
  CHECK_EQUAL(std::string(bytes.begin(), bytes.end()), "me");
}

LAW("a shared lock is made and had by many, each until it ends, and waits only so long for one who has it alone") {
  TemporaryDirectory directory;
  const std::string path = directory / "alive";
  const auto share = [&] {
    share_lock(path, 1000);
    return true;
  };
  OtherProcess first(share), second(share);
  CHECK(!is_free(path));
  first.end();
  CHECK(!is_free(path));
  second.end();
  CHECK(is_free(path));

  OtherProcess alone([&] { return !acquire_lock(path, "alone").has_value(); });
  CHECK_EQUAL(ERROR_OF(share_lock(path, 20)).code_name(), "NATIVE_IO");
  alone.end();
  share_lock(path, 20);
  CHECK(!is_free(path));
}

LAW("a file's lock is had by one alone or by many who share it, and is free once each has given it back or ended") {
  TemporaryDirectory directory;
  const std::string path = directory / "running.lock";
  FileLock mine(path);
  CHECK(mine.try_take(LockKind::exclusive));
  {
    FileLock first(path), second(path);
    CHECK(!first.try_take(LockKind::shared));
    mine.give_back();
    mine.give_back();
    CHECK(first.try_take(LockKind::shared) && second.try_take(LockKind::shared));
    CHECK(!mine.try_take(LockKind::exclusive));
    first.give_back();
    CHECK(!mine.try_take(LockKind::exclusive));
  }
  CHECK(mine.try_take(LockKind::exclusive));
  mine.give_back();

  OtherProcess engine([&] {
    static FileLock other(path);
    return other.try_take(LockKind::shared);
  });
  CHECK(!mine.try_take(LockKind::exclusive));
  engine.end();
  CHECK(mine.try_take(LockKind::exclusive));
  CHECK_EQUAL(ERROR_OF(FileLock(directory / "")).code_name(), "NATIVE_IO");
}
