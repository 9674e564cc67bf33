// What the laws stand on: a directory that goes away, checkpoint files in it, an arena, and programs written by hand.
#pragma once

#include <sys/stat.h>

#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <future>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "arena.h"
#include "layer_program.h"
#include "run_layer.h"
#include "thread_pool.h"

namespace layercast::test {

inline constexpr std::array kEveryScheme = [] {
  std::array<Scheme, kSchemes.size()> every;
  for (size_t i = 0; i < every.size(); i++) every[i] = kSchemes[i].scheme;
  return every;
}();

/// All but none.
inline constexpr std::span kQuantizing = std::span(kEveryScheme).subspan<1>();

inline constexpr double kNoConstant = std::numeric_limits<double>::quiet_NaN();

/** `npm run test:deep`; else the slowest laws are shown on a sample of their cases. */
inline bool deep() {
  const char* value = std::getenv("LAYERCAST_DEEP");
  return value != nullptr && std::string_view(value) == "1";
}

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string name = (std::filesystem::temp_directory_path() / "layercast-test-XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path_); }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

using ByteVector = std::vector<uint8_t>;

inline void write_file(const std::string& path, const ByteVector& bytes) {
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(bytes.data()),
                                              static_cast<std::streamsize>(bytes.size()));
}

inline ByteVector read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return ByteVector(std::istreambuf_iterator<char>(file), {});
}

/// A file as a plan describes it.
inline ProgramFile planned(const std::string& path) {
  struct stat status;
  if (stat(path.c_str(), &status) == -1) throw std::runtime_error("no " + path);
  return {path, static_cast<uint64_t>(status.st_size),
          static_cast<int64_t>(status.st_mtim.tv_sec) * 1'000'000'000 + status.st_mtim.tv_nsec, status.st_ino};
}

inline Slice contiguous(uint64_t offset, uint64_t rows, uint64_t cols, DType dtype, uint64_t to_row = 0) {
  return {0, offset, cols * dtype_bytes(dtype), rows, cols, dtype, to_row, dtype_bytes(dtype), -1};
}

/// An op that its first `slices` slices fill whole, written from the arena's first byte on.
inline Op filled(Scheme scheme, DType out, uint64_t rows, uint64_t cols, uint64_t slices = 1) {
  const bool scaled = scheme != Scheme::none;
  const auto scale_offset = static_cast<int64_t>(ceil_div(rows * cols, 256) * 256);
  return {scheme, out, DType::none, rows, cols, 0, scaled ? scale_offset : -1, 0, slices, 0, 0, kNoConstant, false};
}

inline const PinnedSources& nothing_pinned() {
  static const PinnedSources none(cpu_backend(), nullptr);
  return none;
}

inline std::shared_ptr<OpenDevice> open_cpu(uint32_t lanes = 1) {
  return std::make_shared<OpenDevice>(cpu_backend(), 0, lanes);
}

/// A pool and an arena with poisoned staging.
struct Bench {
  explicit Bench(uint64_t data_bytes, uint32_t threads = 2)
      : pool(std::make_unique<ThreadPool>(threads)), header(4096, uint8_t{' '}) {
    const ArenaOptions options = {directory / "live", OpenMode::create, header, data_bytes};
    arena = std::make_unique<Arena>(open_cpu(pool->lanes()), options);
    arena->open_staging(*pool, Where::device, true);
  }

  LayerReport run(const LayerProgram& program) {
    return run_layer(*pool, *arena, Half::staging, program, CancelToken());
  }

  ByteVector staging() const {
    const uint8_t* base = arena->base(Half::staging);
    return ByteVector(base, base + arena->data_bytes());
  }

  TemporaryDirectory directory;
  std::unique_ptr<ThreadPool> pool;
  ByteVector header;
  std::unique_ptr<Arena> arena;
};

template <class T>
ByteVector bytes_of(const std::vector<T>& values) {
  ByteVector bytes(values.size() * sizeof(T));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

template <class T>
T value_at(const ByteVector& bytes, uint64_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

}  // namespace layercast::test
