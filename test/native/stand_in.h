// What the laws about devices stand on: the stand-in device with a memory of its own, and a holder process.
#pragma once

#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <string>
#include <vector>

#include "check.h"
#include "cuda_library.h"
#include "support.h"
#include "text.h"

namespace layercast::test {

/// A variable of the environment, set while this lives.
class Variable {
 public:
  Variable(const char* name, const std::string& value) : name_(name) { setenv(name, value.c_str(), 1); }
  ~Variable() { unsetenv(name_); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  const char* name_;
};

/// The stand-in device with so many bytes of memory and a few more, by which no other process has the same.
struct StandInDevice {
  explicit StandInDevice(uint64_t bytes, uint32_t lanes = 3)
      : total_bytes(bytes + static_cast<uint64_t>(getpid())),
        size("LAYERCAST_STAND_IN_BYTES", std::to_string(total_bytes)),
        device(std::make_shared<OpenDevice>(backend(), 0, lanes)) {}

  static const Backend& backend() {
    static const CudaLibrary library = open_cuda_library(LAYERCAST_STAND_IN);
    if (library.backend == nullptr) throw std::runtime_error(library.unavailable);
    return *library.backend;
  }

  const uint64_t total_bytes;
  const Variable size;
  const std::shared_ptr<OpenDevice> device;
};

/// layercast-holder on the stand-in device, ended with its scope.
class HolderProcess {
 public:
  explicit HolderProcess(uint64_t bytes) {
    int out[2];
    if (pipe(out) != 0) throw std::runtime_error("no pipe");
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
    posix_spawn_file_actions_addclose(&actions, out[0]);
    std::vector<std::string> words = {LAYERCAST_HOLDER,      "--library", LAYERCAST_STAND_IN, "--device",
                                      "0",                   "--bytes",   std::to_string(bytes), "--alive",
                                      directory_ / "alive",  "--grace-ms", "60000"};
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    if (posix_spawn(&pid_, LAYERCAST_HOLDER, &actions, nullptr, arguments.data(), environ) != 0) {
      throw std::runtime_error("no " LAYERCAST_HOLDER);
    }
    posix_spawn_file_actions_destroy(&actions);
    close(out[1]);
    std::array<char, 2 * kIpcHandleBytes> text{};
    const ssize_t got = read(out[0], text.data(), text.size());
    close(out[0]);
    const std::string hex(text.data(), static_cast<size_t>(std::max<ssize_t>(got, 0)));
    handle_ = bytes_from_hex<kIpcHandleBytes>(hex, "what the holder printed");
  }
  ~HolderProcess() { end(); }
  HolderProcess(const HolderProcess&) = delete;
  HolderProcess& operator=(const HolderProcess&) = delete;

  std::span<const uint8_t> handle() const { return handle_; }

  void end() {
    if (pid_ == 0) return;
    kill(pid_, SIGTERM);
    waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }

 private:
  TemporaryDirectory directory_;
  pid_t pid_ = 0;
  std::array<uint8_t, kIpcHandleBytes> handle_;
};

}  // namespace layercast::test
