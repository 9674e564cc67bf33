#include "pinned_sources.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "error.h"
#include "file.h"

namespace layercast {
namespace {

constexpr uint64_t kPageBytes = 4096;
/// Of an entry of /proc/self/pagemap: this process's page table has the page.
constexpr uint64_t kPresent = uint64_t{1} << 63;
constexpr uint64_t kEntriesAtOnce = 1024;

/// Kept open: every tile asks. -1 where this system does not tell.
int page_map() {
  static const int descriptor = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  return descriptor;
}

/// Cutting a file takes its pages out of every page table, and nothing in this process puts others there: bytes of a pinned
/// file are never touched by its threads.
bool all_present(const uint8_t* at, uint64_t bytes) {
  const uint64_t first = reinterpret_cast<uintptr_t>(at) / kPageBytes;
  const uint64_t end = (reinterpret_cast<uintptr_t>(at) + bytes + kPageBytes - 1) / kPageBytes;
  std::array<uint64_t, kEntriesAtOnce> entries;
  for (uint64_t page = first; page < end; page += kEntriesAtOnce) {
    const uint64_t count = std::min(kEntriesAtOnce, end - page);
    const ssize_t wanted = static_cast<ssize_t>(count * sizeof(uint64_t));
    if (pread(page_map(), entries.data(), wanted, static_cast<off_t>(page * sizeof(uint64_t))) != wanted) return false;
    if (!std::all_of(entries.begin(), entries.begin() + count, [](uint64_t entry) { return entry & kPresent; })) {
      return false;
    }
  }
  return true;
}

}  // namespace

PinnedFile::PinnedFile(const Backend& backend, Device* device, const ProgramFile& file)
    : backend_(backend), device_(device), size_bytes_(file.size_bytes) {
  const File opened(file.path, O_RDONLY | O_NONBLOCK);
  struct stat status;
  if (fstat(opened.descriptor(), &status) == -1) throw_errno("looking at " + file.path, errno);
  device_id_ = status.st_dev;
  inode_ = status.st_ino;
  if (!S_ISREG(status.st_mode) || static_cast<uint64_t>(status.st_size) != size_bytes_) {
    throw NativeError(ErrorCode::source_changed, file.path + " is not as it was planned");
  }
  void* mapped = mmap(nullptr, size_bytes_, PROT_READ, MAP_SHARED, opened.descriptor(), 0);
  if (mapped == MAP_FAILED) throw_errno("mapping " + file.path, errno, size_bytes_);
  bytes_ = static_cast<const uint8_t*>(mapped);
  const Status pinned = backend_.pin(device_, bytes_, size_bytes_);
  if (pinned == Status::ok) return;
  munmap(mapped, size_bytes_);
  throw NativeError(pinned == Status::out_of_memory ? ErrorCode::out_of_memory : ErrorCode::io, backend_.last_error(),
                    {{"bytes", static_cast<double>(size_bytes_)}});
}

PinnedFile::~PinnedFile() {
  backend_.unpin(device_, bytes_);
  munmap(const_cast<uint8_t*>(bytes_), size_bytes_);
}

bool PinnedFile::is(const struct stat& status) const {
  return status.st_dev == device_id_ && status.st_ino == inode_ && static_cast<uint64_t>(status.st_size) == size_bytes_;
}

bool PinnedFile::is_current(uint64_t offset, uint64_t bytes) const {
  return offset <= size_bytes_ && bytes <= size_bytes_ - offset && all_present(bytes_ + offset, bytes);
}

uint64_t PinnedSources::keep(std::span<const ProgramFile> files, uint64_t limit_bytes) {
  if (backend_.fetch == nullptr) return 0;
  std::vector<std::shared_ptr<const PinnedFile>> kept;
  uint64_t bytes = 0;
  for (const ProgramFile& file : files) {
    if (file.size_bytes == 0 || file.size_bytes > limit_bytes - bytes) continue;
    std::shared_ptr<const PinnedFile> pinned = current(file);
    if (pinned == nullptr) pinned = std::make_shared<const PinnedFile>(backend_, device_, file);
    bytes += file.size_bytes;
    kept.push_back(std::move(pinned));
  }
  const std::scoped_lock lock(mutex_);
  files_ = std::move(kept);
  return bytes;
}

std::shared_ptr<const PinnedFile> PinnedSources::current(const ProgramFile& file) const {
  struct stat status;
  if (stat(file.path.c_str(), &status) == -1) return nullptr;
  std::shared_ptr<const PinnedFile> pinned = find(status);
  return pinned != nullptr && pinned->is_current(0, pinned->size_bytes()) ? pinned : nullptr;
}

std::shared_ptr<const PinnedFile> PinnedSources::find(const struct stat& status) const {
  const std::scoped_lock lock(mutex_);
  const auto found = std::ranges::find_if(files_, [&](const auto& file) { return file->is(status); });
  return found == files_.end() ? nullptr : *found;
}

}  // namespace layercast
