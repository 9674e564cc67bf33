// Memory that another process holds: this executable started once more, which prints the handle and stays until its
// standard input is closed.
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>

#include "program.h"
#include "text.h"
#include "values.h"

namespace layercast::conformance {
namespace {

constexpr uint64_t kHeldBytes = 5 << 20;
constexpr int kDeadlineMs = 120'000;

class Holder {
 public:
  explicit Holder(const Options& options) {
    int to_holder[2], from_holder[2];
    require(pipe(to_holder) == 0 && pipe(from_holder) == 0, "there are no pipes");
    // Made before: between fork and exec nothing may ask for memory, as another thread may have had its lock.
    const std::string device = std::to_string(options.device), bytes = std::to_string(kHeldBytes);
    const char* const arguments[] = {"layercast_conformance", "--backend", options.backend.c_str(), "--device",
                                     device.c_str(),          "--hold",    bytes.c_str(),           nullptr};
    pid_ = fork();
    require(pid_ != -1, "a process cannot be started");
    if (pid_ == 0) become_holder(arguments, to_holder, from_holder);
    close(to_holder[0]);
    close(from_holder[1]);
    input_ = to_holder[1];
    output_ = from_holder[0];
  }
  ~Holder() {
    close(input_);
    close(output_);
    waitpid(pid_, nullptr, 0);  // it ends with its input, and by itself after a while
  }
  Holder(const Holder&) = delete;
  Holder& operator=(const Holder&) = delete;

  std::array<uint8_t, kIpcHandleBytes> handle() const {
    std::string line;
    char letter = 0;
    while (letter != '\n') {
      pollfd waiting = {output_, POLLIN, 0};
      require(poll(&waiting, 1, kDeadlineMs) == 1 && ::read(output_, &letter, 1) == 1, "the holder says no handle");
      if (letter != '\n') line += letter;
    }
    return bytes_from_hex<kIpcHandleBytes>(line, "the handle");
  }

 private:
  [[noreturn]] static void become_holder(const char* const* arguments, const int* input, const int* output) {
    dup2(input[0], STDIN_FILENO);
    dup2(output[1], STDOUT_FILENO);
    for (const int fd : {input[0], input[1], output[0], output[1]}) close(fd);
    execv("/proc/self/exe", const_cast<char* const*>(arguments));
    _exit(127);
  }

  pid_t pid_;
  int input_;
  int output_;
};

}  // namespace

int hold_memory(const Backend& backend, int device, uint64_t bytes) {
  alarm(2 * kDeadlineMs / 1000);
  std::array<uint8_t, kIpcHandleBytes> handle;
  if (backend.hold(device, bytes, handle.data()) != Status::ok) {
    std::cerr << backend.last_error() << std::endl;
    return 1;
  }
  std::cout << hex_of(handle) << std::endl;
  char ignored;
  while (::read(STDIN_FILENO, &ignored, 1) > 0) {
  }
  return 0;
}

void check_held_memory(const Subject& subject, const Options& options, Score& score) {
  if (subject.is_cpu()) {
    score.law("the CPU says why it holds nothing", [&] {
      uint8_t handle[kIpcHandleBytes];
      require(subject.backend.hold(0, kHeldBytes, handle) == Status::failed, "it holds memory");
      require(subject.backend.last_error()[0] != '\0', "it does not say why");
    });
    return;
  }
  score.law("memory that another process holds takes a program and keeps it from one opening to the next", [&] {
    const Holder holder(options);
    const auto handle = holder.handle();
    Program program;
    add_op(program, Scheme::fp8_channel, DType::bf16, DType::none, DType::f8_e4m3, 500, 1000, 0, false,
           matrix_of(value_classes()[1], DType::bf16, 500, 1000, 5));
    const Outcome want = Oracle(subject, kHeldBytes)(program);
    {
      const OpenHalf half(subject, HalfKind::held, kHeldBytes, handle.data());
      require_equal(program, run_program(subject, program, half.base(), by_buffer(subject, program)), want);
    }
    const OpenHalf half(subject, HalfKind::held, kHeldBytes, handle.data());
    const OpenHalf own(subject, HalfKind::own, kHeldBytes);
    subject.check(subject.backend.exchange(subject.device, 0, half.base(), own.base(), program.half_bytes));
    ByteVector kept(program.half_bytes);
    subject.check(subject.backend.read_back(subject.device, 0, own.base(), kept.size(), kept.data()));
    require(kept == want.half, "the second opening does not show what the first has written");
  });
}

}  // namespace layercast::conformance
