#include "buffers.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <string>
#include <utility>
#include <vector>

#include "error.h"
#include "host_memory.h"
#include "open_files.h"
#include "timing.h"

namespace layercast {
namespace {

/// Of the packed bytes; a thread's turn.
constexpr uint64_t kPieceBytes = 4 << 20;

/// The kernel's number, for headers of a C library that does not have it yet.
constexpr int kPopulateWrite = 23;

struct stat status_of(int fd) {
  struct stat status;
  if (fstat(fd, &status) == -1) throw_errno("looking at buffers", errno);
  return status;
}

template <class Call>
int retried(const Call& call) {
  int result;
  do {
    result = call();
  } while (result == -1 && errno == EINTR);
  return result;
}

struct Piece {
  FileRows rows;
  uint64_t to_offset;
};

/// A copy that has bytes.
void cut_copy(const Copy& copy, std::vector<Piece>& pieces) {
  const bool together = copy.row_stride == copy.row_bytes;
  const uint64_t rows = together ? 1 : copy.rows;
  const uint64_t row_bytes = together ? copy.rows * copy.row_bytes : copy.row_bytes;
  const uint64_t rows_at_once = std::max<uint64_t>(1, kPieceBytes / row_bytes);
  for (uint64_t row = 0; row < rows; row += rows_at_once) {
    // Only a row that is larger than a piece is cut, and is then alone.
    for (uint64_t done = 0; done < row_bytes; done += kPieceBytes) {
      pieces.push_back({{copy.file, copy.offset + row * copy.row_stride + done, copy.row_stride,
                         std::min(rows_at_once, rows - row), std::min(kPieceBytes, row_bytes - done)},
                        copy.to_offset + row * row_bytes + done});
    }
  }
}

}  // namespace

Buffers::Buffers(uint64_t bytes) : size_bytes_(bytes) {
  if (bytes == 0) throw_invalid("buffers must not have 0 bytes");
  const std::string what = "making buffers of " + std::to_string(bytes) + " bytes";
  descriptor_ = memfd_create("layercast-buffers", MFD_CLOEXEC);
  if (descriptor_ == -1) throw_errno(what, errno, bytes);
  // Mapped, as threads that write to one file by calls wait for each other.
  void* mapped = MAP_FAILED;
  if (ftruncate(descriptor_, static_cast<off_t>(bytes)) == 0) {
    mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, descriptor_, 0);
  }
  if (mapped == MAP_FAILED) {
    const int error_number = errno;
    close(descriptor_);
    throw_errno(what, error_number, bytes);
  }
  bytes_ = static_cast<uint8_t*>(mapped);
}

Buffers::~Buffers() {
  munmap(bytes_, size_bytes_);
  close(descriptor_);
}

ProgramFile Buffers::file() const {
  const struct stat status = status_of(descriptor_);
  return {"/proc/self/fd/" + std::to_string(descriptor_), size_bytes_, mtime_ns(status), status.st_ino};
}

uint64_t Buffers::held_bytes() const { return static_cast<uint64_t>(status_of(descriptor_).st_blocks) * 512; }

/// Nobody uses the descriptor's position, which the calls below move.
uint64_t Buffers::missing_bytes(const Span& span) const {
  const auto end = static_cast<off_t>(span.offset + span.bytes);
  off_t missing = 0;
  for (off_t at = static_cast<off_t>(span.offset); at < end;) {
    const off_t hole = lseek(descriptor_, at, SEEK_HOLE);
    if (hole == -1 || hole >= end) break;
    const off_t filled = lseek(descriptor_, hole, SEEK_DATA);
    at = filled == -1 ? end : std::min(filled, end);
    missing += at - hole;
  }
  return static_cast<uint64_t>(missing);
}

void Buffers::check_room(std::span<const Span> spans) const {
  uint64_t missing = 0;
  for (const Span& span : spans) missing += missing_bytes(span);
  const uint64_t available = available_host_bytes();
  if (missing <= available) return;
  throw NativeError(ErrorCode::out_of_memory,
                    "buffers need " + std::to_string(missing) + " bytes more, and this host has " +
                        std::to_string(available) + " available",
                    {{"bytes", static_cast<double>(missing)}});
}

uint8_t* Buffers::hold(const Span& span) const {
  static const auto page_bytes = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  const uint64_t first = span.offset / page_bytes * page_bytes;
  const uint64_t bytes = span.offset + span.bytes - first;
  if (retried([&] { return madvise(bytes_ + first, bytes, kPopulateWrite); }) == 0) return bytes_ + span.offset;
  // EINVAL: a kernel before 5.14. EFAULT: touching a page would have been a signal, as there is none.
  int error_number = errno == EFAULT ? ENOMEM : errno;
  if (error_number == EINVAL) {
    const auto [from, length] = std::pair(static_cast<off_t>(first), static_cast<off_t>(bytes));
    error_number = retried([&] { return fallocate(descriptor_, FALLOC_FL_KEEP_SIZE, from, length); }) == 0 ? 0 : errno;
  }
  if (error_number != 0) throw_errno("getting memory for buffers", error_number, span.bytes);
  return bytes_ + span.offset;
}

void Buffers::free(std::span<const Span> spans) const {
  for (const Span& span : spans) check_inside(span.offset, span.bytes, size_bytes_, "a span of the buffers");
  for (const Span& span : spans) {
    if (span.bytes == 0) continue;
    const auto [from, length] = std::pair(static_cast<off_t>(span.offset), static_cast<off_t>(span.bytes));
    constexpr int kPunch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    if (retried([&] { return fallocate(descriptor_, kPunch, from, length); }) == -1) {
      throw_errno("giving back memory of buffers", errno);
    }
  }
}

FillReport fill_buffers(ThreadPool& pool, const Buffers& buffers, std::span<const ProgramFile> files,
                        std::span<const Copy> copies, const CancelToken& cancel) {
  cancel.check();
  check_copies(files, copies, buffers.size_bytes());
  OpenFiles opened(files);
  std::vector<Span> filled;
  std::vector<Piece> pieces;
  for (const Copy& copy : copies) {
    const uint64_t bytes = copy.rows * copy.row_bytes;
    if (bytes == 0) continue;
    if (!opened.is_open(copy.file)) opened.open(copy.file);
    filled.push_back({copy.to_offset, bytes});
    cut_copy(copy, pieces);
  }
  buffers.check_room(filled);

  std::atomic<uint64_t> bytes_read = 0, read_ns = 0;
  pool.each(pieces.size(), &cancel, [&](uint64_t index, uint32_t) {
    Stopwatch watch;
    const auto& [rows, to_offset] = pieces[index];
    uint8_t* to = buffers.hold({to_offset, rows.count * rows.bytes});
    bytes_read.fetch_add(opened.read_rows(rows, to), std::memory_order_relaxed);
    read_ns.fetch_add(watch.lap_ns(), std::memory_order_relaxed);
  });
  opened.check_unchanged();
  return {bytes_read, read_ns};
}

}  // namespace layercast
