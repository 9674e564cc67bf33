#include "arena.h"

#include <fcntl.h>

#include <algorithm>
#include <vector>

#include "error.h"
#include "file.h"

namespace layercast {
namespace {

constexpr uint64_t kPageBytes = 4096;
constexpr uint8_t kPoison = 0xA5;

void check_options(const OpenDevice& device, const ArenaOptions& options) {
  if (options.header.empty() || options.header.size() % kPageBytes != 0) {
    throw_invalid("headerBytes must be a multiple of 4096 bytes, not " + std::to_string(options.header.size()));
  }
  if (options.data_bytes == 0) throw_invalid("dataBytes must not be 0");
  const uint64_t expected = device.is_cpu() ? 0 : kIpcHandleBytes;
  if (options.ipc_handle.size() != expected) {
    throw_invalid("ipcHandle must have " + std::to_string(expected) + " bytes on a " + device.backend().kind +
                  " device, not " + std::to_string(options.ipc_handle.size()));
  }
}

uint64_t file_bytes(const ArenaOptions& options) {
  return options.header.size() + (options.ipc_handle.empty() ? options.data_bytes : 0);
}

}  // namespace

Arena::Arena(std::shared_ptr<OpenDevice> device, const ArenaOptions& options)
    : device_(std::move(device)), data_bytes_(options.data_bytes) {
  check_options(*device_, options);
  try {
    if (options.mode == OpenMode::create) {
      create_live(options);
    } else {
      attach_live(options);
    }
  } catch (...) {
    close_half(live_);
    throw;
  }
}

Arena::~Arena() {
  close_half(staging_);
  close_half(live_);
}

void Arena::create_live(const ArenaOptions& options) {
  // A constant name: what a killed process left there is overwritten, not left for ever.
  NewFile made(options.path, options.path + ".new");
  made.file().reserve(file_bytes(options));
  made.file().write_at(0, options.header);
  open_live(made.file().descriptor(), options);
  made.commit();
}

void Arena::attach_live(const ArenaOptions& options) {
  const File file(options.path, O_RDWR);
  if (file.size_bytes() != file_bytes(options)) {
    throw_invalid(options.path + " has " + std::to_string(file.size_bytes()) + " bytes, the arena's must have " +
                  std::to_string(file_bytes(options)));
  }
  std::vector<uint8_t> header(options.header.size());
  file.read_at(0, header);
  if (!std::ranges::equal(header, options.header)) throw_invalid(options.path + " has the header of another arena");
  open_live(file.descriptor(), options);
}

void Arena::open_live(int fd, const ArenaOptions& options) {
  if (options.ipc_handle.empty()) {
    live_ = open_half({HalfKind::file, data_bytes_, fd, options.header.size(), nullptr});
  } else {
    live_ = open_half({HalfKind::held, data_bytes_, -1, 0, options.ipc_handle.data()});
  }
}

uint8_t* Arena::open_half(const HalfSpec& spec) const {
  uint8_t* base = nullptr;
  device_->check(backend().open_half(device(), &spec, &base), spec.bytes, spec.kind);
  return base;
}

void Arena::close_half(uint8_t*& base) const {
  if (base != nullptr) backend().close_half(device(), base, data_bytes_);
  base = nullptr;
}

void Arena::open_staging(ThreadPool& pool, Where where, bool poison) {
  check_idle("opening staging");
  base(Half::live);
  const HalfKind kind = where == Where::host && !device_->is_cpu() ? HalfKind::host : HalfKind::own;
  if (kind != staging_kind_) close_half(staging_);
  if (staging_ == nullptr) staging_ = open_half({kind, data_bytes_, -1, 0, nullptr});
  staging_kind_ = kind;
  if (!poison) return;
  const Span whole = {0, data_bytes_};
  const std::vector<Span> parts = cut_spans({&whole, 1}, backend().part_bytes);
  pool.each(parts.size(), nullptr, [&](uint64_t index, uint32_t lane) {
    check(backend().fill(device(), lane, staging_ + parts[index].offset, parts[index].bytes, kPoison));
  });
}

void Arena::close_staging() {
  check_idle("closing staging");
  close_half(staging_);
}

void Arena::close() {
  check_idle("closing the arena");
  close_half(staging_);
  close_half(live_);
}

uint8_t* Arena::base(Half half) const {
  uint8_t* base = half == Half::live ? live_ : staging_;
  if (base == nullptr) throw_invalid(half == Half::live ? "the arena is closed" : "the arena's staging is not open");
  return base;
}

void Arena::check_spans(std::span<const Span> spans) const {
  for (const Span& span : spans) check_inside(span.offset, span.bytes, data_bytes_, "a span of the arena");
}

void Arena::check_idle(const char* what) const {
  const uint64_t in_flight = in_flight_.load();
  if (in_flight != 0) {
    throw_invalid(std::string(what) + " must wait: " + std::to_string(in_flight) + " calls are in flight");
  }
}

std::vector<Span> cut_spans(std::span<const Span> spans, uint64_t part_bytes) {
  std::vector<Span> parts;
  for (const Span& span : spans) {
    const uint64_t step = part_bytes == 0 ? span.bytes : part_bytes;
    for (uint64_t done = 0; done < span.bytes; done += step) {
      parts.push_back({span.offset + done, std::min(step, span.bytes - done)});
    }
  }
  return parts;
}

}  // namespace layercast
