// layercast-holder: holds memory of a GPU for a rank, and does nothing else, so that there is little it could die of.
// A worker may end and its successor find the weights at the same place; consumers' mappings stay. It prints the handle
// by which others open the memory, and ends with the last process that has a shared lock on a file.
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <map>
#include <string>
#include <thread>

#include "cuda_library.h"
#include "error.h"
#include "text.h"

namespace layercast {
namespace {

constexpr int kFailed = 1;
constexpr int kBadUsage = 2;
constexpr int kOutOfMemory = 3;
constexpr const char* kUsage =
    "usage: layercast-holder --library PATH --device N --bytes B --alive PATH --grace-ms MS";
constexpr std::chrono::milliseconds kShortestPause(200);
constexpr std::chrono::milliseconds kLongestPause(1000);

struct HolderOptions {
  std::string library;
  int ordinal;
  uint64_t bytes;
  std::string alive_path;
  std::chrono::milliseconds grace;
};

/// Throws invalid_argument.
HolderOptions parse(int argc, char** argv) {
  std::map<std::string, std::string> given;
  for (int i = 1; i + 1 < argc; i += 2) given[argv[i]] = argv[i + 1];
  const auto take = [&](const char* name) {
    const auto found = given.extract(name);
    if (found.empty()) throw_invalid(std::string(name) + " is missing");
    return found.mapped();
  };
  HolderOptions options = {
      .library = take("--library"),
      .ordinal = number_from_text<uint16_t>(take("--device"), "--device"),
      .bytes = number_from_text<uint64_t>(take("--bytes"), "--bytes"),
      .alive_path = take("--alive"),
      .grace = std::chrono::milliseconds(number_from_text<uint32_t>(take("--grace-ms"), "--grace-ms")),
  };
  if (argc % 2 == 0 || !given.empty()) {
    throw_invalid(std::string("what is ") + (given.empty() ? argv[argc - 1] : given.begin()->first) + "?");
  }
  if (options.bytes == 0) throw_invalid("--bytes must not be 0");
  return options;
}

int say(int code, const std::string& sentence) {
  std::fprintf(stderr, "%s\n", sentence.c_str());
  return code;
}

/// From here on nobody's pipe or terminal is kept open, and what a driver prints goes nowhere.
void let_go_of_standard_streams() {
  std::fflush(stdout);
  const int nowhere = open("/dev/null", O_RDWR);
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) dup2(nowhere, stream);
}

/// Whether no process has the lock. It is this one's then, until the descriptor in `taken` is closed.
bool is_free(const std::string& path, int* taken) {
  *taken = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (*taken == -1) return errno == ENOENT || errno == ENOTDIR;  // a rank whose directory is gone has no worker
  if (flock(*taken, LOCK_EX | LOCK_NB) == 0) return true;
  close(*taken);
  return false;
}

/// Returns once the lock was found free for the grace time, and then has it: a worker that comes now waits until this
/// process is gone, and does not open memory that is about to go.
void wait_for_last_worker(const std::string& path, std::chrono::milliseconds grace) {
  const auto pause = std::clamp(grace / 5, kShortestPause, kLongestPause);
  // Looks are counted, not time: after a standstill of this process, or of the machine, workers get theirs again.
  const int64_t enough = (grace + pause - std::chrono::milliseconds(1)) / pause;
  for (int64_t free_looks = 0;; std::this_thread::sleep_for(pause)) {
    int taken = -1;
    if (!is_free(path, &taken)) {
      free_looks = 0;
      continue;
    }
    if (++free_looks > enough) return;
    close(taken);
  }
}

int hold(const HolderOptions& options) {
  const CudaLibrary library = open_cuda_library(options.library);
  if (library.backend == nullptr) return say(kFailed, library.unavailable);
  std::array<uint8_t, kIpcHandleBytes> handle;
  const Status status = library.backend->hold(options.ordinal, options.bytes, handle.data());
  if (status != Status::ok) {
    return say(status == Status::out_of_memory ? kOutOfMemory : kFailed, library.backend->last_error());
  }
  std::printf("%s\n", hex_of(handle).c_str());
  let_go_of_standard_streams();
  wait_for_last_worker(options.alive_path, options.grace);
  return 0;
}

int run(int argc, char** argv) {
  HolderOptions options;
  try {
    options = parse(argc, argv);
  } catch (const NativeError& error) {
    return say(kBadUsage, error.what() + std::string("\n") + kUsage);
  }
  // The end of the terminal, or Ctrl-C in it, is not the end of the weights.
  for (const int ignored : {SIGHUP, SIGINT, SIGPIPE}) signal(ignored, SIG_IGN);
  signal(SIGTERM, SIG_DFL);
  return hold(options);
}

}  // namespace
}  // namespace layercast

int main(int argc, char** argv) { return layercast::run(argc, argv); }
