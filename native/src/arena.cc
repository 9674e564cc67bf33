#include "arena.h"

#include <fcntl.h>

#include <algorithm>
#include <vector>

#include "error.h"
#include "file.h"

namespace layercast {
namespace {

constexpr uint64_t kPageBytes = 4096;
constexpr uint64_t kPartBytes = 1 << 20;
constexpr uint8_t kPoison = 0xA5;

void check_options(const ArenaOptions& options) {
  if (options.header.empty() || options.header.size() % kPageBytes != 0) {
    throw_invalid("headerBytes must be a multiple of 4096 bytes, not " + std::to_string(options.header.size()));
  }
  if (options.data_bytes == 0) throw_invalid("dataBytes must not be 0");
}

}  // namespace

Arena::Arena(const Backend& backend, uint32_t lanes, const ArenaOptions& options)
    : backend_(backend), data_bytes_(options.data_bytes) {
  check_options(options);
  check(backend.open(0, lanes, &device_));
  try {
    if (options.mode == OpenMode::create) {
      create_live(options);
    } else {
      attach_live(options);
    }
  } catch (...) {
    release();
    throw;
  }
}

Arena::~Arena() { release(); }

void Arena::release() {
  if (staging_ != nullptr) backend_.close_half(device_, staging_, data_bytes_);
  if (live_ != nullptr) backend_.close_half(device_, live_, data_bytes_);
  if (device_ != nullptr) backend_.close(device_);
  staging_ = live_ = nullptr;
  device_ = nullptr;
}

void Arena::create_live(const ArenaOptions& options) {
  // A constant name: what a killed process left there is overwritten, not left for ever.
  NewFile made(options.path, options.path + ".new");
  made.file().reserve(options.header.size() + options.data_bytes);
  made.file().write_at(0, options.header);
  map_live(made.file().descriptor(), options);
  made.commit();
}

void Arena::attach_live(const ArenaOptions& options) {
  const File file(options.path, O_RDWR);
  const uint64_t expected = options.header.size() + options.data_bytes;
  if (file.size_bytes() != expected) {
    throw_invalid(options.path + " has " + std::to_string(file.size_bytes()) + " bytes, the arena " +
                  std::to_string(expected));
  }
  std::vector<uint8_t> header(options.header.size());
  file.read_at(0, header);
  if (!std::ranges::equal(header, options.header)) throw_invalid(options.path + " has the header of another arena");
  map_live(file.descriptor(), options);
}

void Arena::map_live(int fd, const ArenaOptions& options) {
  const HalfSpec spec = {data_bytes_, fd, options.header.size()};
  check(backend_.open_half(device_, &spec, &live_), data_bytes_);
}

void Arena::open_staging(ThreadPool& pool, bool poison) {
  check_idle("opening staging");
  base(Half::live);
  if (staging_ == nullptr) {
    const HalfSpec spec = {data_bytes_, -1, 0};
    check(backend_.open_half(device_, &spec, &staging_), data_bytes_);
  }
  if (!poison) return;
  const Span whole = {0, data_bytes_};
  const std::vector<Span> parts = cut_spans({&whole, 1});
  pool.each(parts.size(), nullptr, [&](uint64_t index, uint32_t lane) {
    check(backend_.fill(device_, lane, staging_ + parts[index].offset, parts[index].bytes, kPoison));
  });
}

void Arena::close_staging() {
  check_idle("closing staging");
  if (staging_ != nullptr) backend_.close_half(device_, staging_, data_bytes_);
  staging_ = nullptr;
}

void Arena::close() {
  check_idle("closing the arena");
  release();
}

uint8_t* Arena::base(Half half) const {
  uint8_t* base = half == Half::live ? live_ : staging_;
  if (base == nullptr) throw_invalid(half == Half::live ? "the arena is closed" : "the arena's staging is not open");
  return base;
}

void Arena::check(Status status, uint64_t bytes) const {
  if (status == Status::ok) return;
  if (status == Status::out_of_memory) {
    throw NativeError(ErrorCode::out_of_memory, backend_.last_error(), {{"bytes", static_cast<double>(bytes)}});
  }
  throw NativeError(ErrorCode::io, backend_.last_error(), {{"errno", 0.0}});
}

void Arena::check_spans(std::span<const Span> spans) const {
  for (const Span& span : spans) {
    if (span.offset > data_bytes_ || span.bytes > data_bytes_ - span.offset) {
      throw_invalid("a span of " + std::to_string(span.bytes) + " bytes at " + std::to_string(span.offset) +
                    " ends past the arena's " + std::to_string(data_bytes_));
    }
  }
}

void Arena::check_idle(const char* what) const {
  const uint64_t in_flight = in_flight_.load();
  if (in_flight != 0) {
    throw_invalid(std::string(what) + " must wait: " + std::to_string(in_flight) + " calls are in flight");
  }
}

std::vector<Span> cut_spans(std::span<const Span> spans) {
  std::vector<Span> parts;
  for (const Span& span : spans) {
    for (uint64_t done = 0; done < span.bytes; done += kPartBytes) {
      parts.push_back({span.offset + done, std::min(kPartBytes, span.bytes - done)});
    }
  }
  return parts;
}

}  // namespace layercast
