// The lock between two processes.
#include "lock.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "support.h"

using namespace layercast;
using namespace layercast::test;

LAW("a lock is one process's until that process ends, and its file names it") {
  TemporaryDirectory directory;
  const std::string path = directory / "lock";
  write_file(path, {'9', '9', '9', '9', '9', '9', '9', '9', '9', '\n'});  // a pid that cannot be, from long ago
  int ready[2];
  CHECK_EQUAL(pipe(ready), 0);
  const pid_t holder = fork();
  if (holder == 0) {
    const char taken = acquire_lock(path) == 0 ? 'y' : 'n';
    const ssize_t written = write(ready[1], &taken, 1);
    while (written == 1) pause();
    _exit(1);
  }
  char taken = 0;
  CHECK_EQUAL(read(ready[0], &taken, 1), 1);
  CHECK_EQUAL(taken, 'y');
  CHECK_EQUAL(acquire_lock(path), holder);
  kill(holder, SIGKILL);
  waitpid(holder, nullptr, 0);
  CHECK_EQUAL(acquire_lock(path), 0);
  const ByteVector bytes = read_file(path);
  CHECK_EQUAL(std::string(bytes.begin(), bytes.end()), std::to_string(getpid()) + "\n");
  close(ready[0]);
  close(ready[1]);
}
