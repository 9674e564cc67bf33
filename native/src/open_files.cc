#include "open_files.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "error.h"

namespace layercast {
namespace {

/// Skipping fewer bytes than this between two rows costs more, as a call a row, than reading over them.
constexpr uint64_t kWorthSkipping = 4 << 10;
constexpr uint64_t kFullRowsBytes = 256 << 10;

ErrorDetails file_details(uint64_t file) { return {{"file", static_cast<double>(file)}}; }

[[noreturn]] void throw_changed(const ProgramFile& file, uint64_t index, const std::string& how) {
  throw NativeError(ErrorCode::source_changed, file.path + " is not as it was planned: " + how, file_details(index));
}

void check_status(const ProgramFile& file, uint64_t index, const struct stat& status) {
  if (!S_ISREG(status.st_mode)) throw_changed(file, index, "it is not a regular file");
  if (static_cast<uint64_t>(status.st_size) != file.size_bytes) {
    throw_changed(file, index, "it has " + std::to_string(status.st_size) + " bytes, not " +
                                   std::to_string(file.size_bytes));
  }
  if (mtime_ns(status) != file.mtime_ns) throw_changed(file, index, "it was written to");
  if (status.st_ino != file.inode) throw_changed(file, index, "another file took its place");
}

[[noreturn]] void throw_file_errno(const ProgramFile& file, uint64_t index, const char* what, int error_number) {
  throw NativeError(ErrorCode::io, std::string(what) + " " + file.path + " failed: " + std::strerror(error_number),
                    {{"errno", static_cast<double>(error_number)}, {"file", static_cast<double>(index)}});
}

}  // namespace

OpenFiles::OpenFiles(std::span<const ProgramFile> files) : files_(files), descriptors_(files.size(), -1) {}

OpenFiles::~OpenFiles() {
  for (const int fd : descriptors_) {
    if (fd != -1) close(fd);
  }
}

struct stat OpenFiles::open(uint64_t index) {
  const ProgramFile& file = files_[index];
  // Without O_NONBLOCK a pipe that took the file's place would hang the thread.
  const int fd = ::open(file.path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd == -1 && (errno == ENOENT || errno == ENOTDIR)) {
    throw NativeError(ErrorCode::source_not_found, file.path + " does not exist", file_details(index));
  }
  if (fd == -1) throw_file_errno(file, index, "opening", errno);
  descriptors_[index] = fd;
  struct stat status;
  if (fstat(fd, &status) == -1) throw_file_errno(file, index, "looking at", errno);
  check_status(file, index, status);
  return status;
}

void OpenFiles::check_unchanged() const {
  for (uint64_t index = 0; index < descriptors_.size(); index++) {
    if (descriptors_[index] == -1) continue;
    const ProgramFile& file = files_[index];
    struct stat status;
    if (fstat(descriptors_[index], &status) == -1) throw_file_errno(file, index, "looking at", errno);
    check_status(file, index, status);
    if (stat(file.path.c_str(), &status) == -1) throw_changed(file, index, "it is not there any more");
    check_status(file, index, status);
  }
}

uint64_t OpenFiles::read_rows(const FileRows& rows, uint8_t* to) const {
  if (rows.stride == rows.bytes || rows.count == 1) {
    read_exactly(rows.file, rows.offset, rows.count * rows.bytes, to);
    return rows.count * rows.bytes;
  }
  if (rows.stride - rows.bytes < kWorthSkipping && rows.stride <= kFullRowsBytes) return read_full_rows(rows, to);
  for (uint64_t row = 0; row < rows.count; row++) {
    read_exactly(rows.file, rows.offset + row * rows.stride, rows.bytes, to + row * rows.bytes);
  }
  return rows.count * rows.bytes;
}

uint64_t OpenFiles::read_full_rows(const FileRows& rows, uint8_t* to) const {
  static thread_local std::vector<uint8_t> full_rows(kFullRowsBytes);
  const uint64_t rows_at_once = kFullRowsBytes / rows.stride;
  uint64_t bytes_read = 0;
  for (uint64_t row = 0; row < rows.count; row += rows_at_once) {
    const uint64_t count = std::min(rows_at_once, rows.count - row);
    // The last row ends with its last element: what follows may be past the end of the file.
    const uint64_t bytes = (count - 1) * rows.stride + rows.bytes;
    read_exactly(rows.file, rows.offset + row * rows.stride, bytes, full_rows.data());
    for (uint64_t i = 0; i < count; i++) {
      std::memcpy(to + (row + i) * rows.bytes, full_rows.data() + i * rows.stride, rows.bytes);
    }
    bytes_read += bytes;
  }
  return bytes_read;
}

void OpenFiles::read_exactly(uint64_t index, uint64_t offset, uint64_t bytes, uint8_t* to) const {
  const ProgramFile& file = files_[index];
  while (bytes > 0) {
    const ssize_t got = pread(descriptors_[index], to, bytes, static_cast<off_t>(offset));
    if (got == -1 && errno == EINTR) continue;
    if (got == -1) throw_file_errno(file, index, "reading", errno);
    if (got == 0) throw_changed(file, index, "it ends before byte " + std::to_string(offset + bytes));
    offset += static_cast<uint64_t>(got);
    bytes -= static_cast<uint64_t>(got);
    to += got;
  }
}

}  // namespace layercast
