#include "export.h"

#include <unistd.h>

#include <atomic>
#include <vector>

#include "file.h"

namespace layercast {
namespace {

/// What a thread has of the live half in its own memory at one time.
constexpr uint64_t kPartBytes = 1 << 20;

/// Exports to one path may be in flight together: each has a name of its own until it is whole.
std::string temporary_path(const std::string& path) {
  static std::atomic<uint64_t> count = 0;
  return path + ".new-" + std::to_string(getpid()) + "-" + std::to_string(count++);
}

}  // namespace

uint64_t export_live(ThreadPool& pool, Arena& arena, const std::string& path, std::span<const uint8_t> header,
                     std::span<const Span> spans, const CancelToken& cancel) {
  cancel.check();
  arena.check_spans(spans);
  const uint8_t* live = arena.base(Half::live);
  const std::vector<Span> parts = cut_spans(spans, kPartBytes);
  std::vector<uint64_t> file_offsets;
  uint64_t file_bytes = header.size();
  for (const Span& part : parts) {
    file_offsets.push_back(file_bytes);
    file_bytes += part.bytes;
  }

  NewFile made(path, temporary_path(path));
  made.file().reserve(file_bytes);
  made.file().write_at(0, header);
  pool.each(parts.size(), &cancel, [&](uint64_t index, uint32_t lane) {
    static thread_local std::vector<uint8_t> host;
    const Span& part = parts[index];
    host.resize(part.bytes);
    arena.check(arena.backend().read_back(arena.device(), lane, live + part.offset, part.bytes, host.data()));
    made.file().write_at(file_offsets[index], host);
  });
  made.commit();
  return file_bytes;
}

}  // namespace layercast
