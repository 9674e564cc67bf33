#include "source.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "error.h"

namespace layercast {
namespace {

/// Skipping fewer bytes than this between two rows costs more, as a call a row, than reading over them.
constexpr uint64_t kWorthSkipping = 4 << 10;
constexpr uint64_t kFullRowsBytes = 256 << 10;

int64_t mtime_ns(const struct stat& status) {
  return static_cast<int64_t>(status.st_mtim.tv_sec) * 1'000'000'000 + status.st_mtim.tv_nsec;
}

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

uint64_t offset_in_file(const Slice& slice, uint64_t first_row, const Tile& tile) {
  return slice.offset + first_row * slice.row_stride + tile.first_col * dtype_bytes(slice.dtype);
}

void fill_constant(uint8_t* to, uint64_t elements, float value) {
  for (uint64_t i = 0; i < elements; i++) std::memcpy(to + i * sizeof value, &value, sizeof value);
}

}  // namespace

SourceFiles::SourceFiles(const LayerProgram& program, const PinnedSources& pinned)
    : program_(program), descriptors_(program.files.size(), -1), pinned_(program.files.size()) {
  try {
    for (const Slice& slice : program.slices) {
      if (descriptors_[slice.file] == -1) open_file(slice.file, pinned);
    }
  } catch (...) {
    close_all();
    throw;
  }
}

SourceFiles::~SourceFiles() { close_all(); }

void SourceFiles::close_all() {
  for (const int fd : descriptors_) {
    if (fd != -1) close(fd);
  }
}

void SourceFiles::open_file(uint64_t index, const PinnedSources& pinned) {
  const ProgramFile& file = program_.files[index];
  // Without O_NONBLOCK a pipe that took the file's place would hang the thread.
  const int fd = open(file.path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd == -1 && (errno == ENOENT || errno == ENOTDIR)) {
    throw NativeError(ErrorCode::source_not_found, file.path + " does not exist", file_details(index));
  }
  if (fd == -1) throw_file_errno(file, index, "opening", errno);
  descriptors_[index] = fd;
  struct stat status;
  if (fstat(fd, &status) == -1) throw_file_errno(file, index, "looking at", errno);
  check_status(file, index, status);
  pinned_[index] = pinned.find(status);
}

void SourceFiles::check_unchanged() const {
  for (uint64_t index = 0; index < descriptors_.size(); index++) {
    if (descriptors_[index] == -1) continue;
    const ProgramFile& file = program_.files[index];
    struct stat status;
    if (fstat(descriptors_[index], &status) == -1) throw_file_errno(file, index, "looking at", errno);
    check_status(file, index, status);
    if (stat(file.path.c_str(), &status) == -1) throw_changed(file, index, "it is not there any more");
    check_status(file, index, status);
  }
}

uint64_t SourceFiles::read_tile(const Tile& tile, uint8_t* buffer) const {
  const Op& op = program_.ops[tile.op];
  const DType dtype = source_dtype(program_, op);
  const uint64_t row_bytes = tile.cols * dtype_bytes(dtype);
  const uint64_t end_row = tile.first_row + tile.rows;
  uint64_t row = tile.first_row;
  uint64_t bytes_read = 0;
  for (uint64_t i = op.first_slice; i < op.first_slice + op.slice_count && row < end_row; i++) {
    const Slice& slice = program_.slices[i];
    if (row >= slice.to_row + slice.rows) continue;
    const uint64_t rows = std::min(end_row, slice.to_row + slice.rows) - row;
    bytes_read += read_rows(slice, row - slice.to_row, rows, tile, buffer + (row - tile.first_row) * row_bytes);
    row += rows;
  }
  uint8_t* rest = buffer + (row - tile.first_row) * row_bytes;
  if (op.slice_count == 0 && !std::isnan(op.constant)) {
    fill_constant(rest, (end_row - row) * tile.cols, static_cast<float>(op.constant));
  } else {
    std::memset(rest, 0, (end_row - row) * row_bytes);
  }
  return bytes_read;
}

bool SourceFiles::seem_pinned() const {
  return !program_.slices.empty() && std::ranges::all_of(program_.slices, [&](const Slice& slice) {
    const PinnedFile* file = pinned_[slice.file].get();
    return file != nullptr && file->is_current(slice.offset, 1);
  });
}

std::vector<HostRows> SourceFiles::pinned_rows(const Tile& tile) const {
  const Op& op = program_.ops[tile.op];
  const uint64_t end_row = tile.first_row + tile.rows;
  uint64_t row = tile.first_row;
  std::vector<HostRows> found;
  for (uint64_t i = op.first_slice; i < op.first_slice + op.slice_count && row < end_row; i++) {
    const Slice& slice = program_.slices[i];
    if (row >= slice.to_row + slice.rows) continue;
    const uint64_t rows = std::min(end_row, slice.to_row + slice.rows) - row;
    const uint64_t row_bytes = tile.cols * dtype_bytes(slice.dtype);
    const uint64_t offset = offset_in_file(slice, row - slice.to_row, tile);
    const PinnedFile* file = pinned_[slice.file].get();
    if (file == nullptr || !file->is_current(offset, (rows - 1) * slice.row_stride + row_bytes)) return {};
    found.push_back({file->bytes() + offset, slice.row_stride, rows, row_bytes, (row - tile.first_row) * row_bytes});
    row += rows;
  }
  if (row < end_row) return {};  // zeros or a constant follow
  return found;
}

uint64_t SourceFiles::read_rows(const Slice& slice, uint64_t first_row, uint64_t rows, const Tile& tile,
                                uint8_t* to) const {
  const uint64_t row_bytes = tile.cols * dtype_bytes(slice.dtype);
  const uint64_t offset = offset_in_file(slice, first_row, tile);
  if (slice.row_stride == row_bytes || rows == 1) {
    read_exactly(slice.file, offset, rows * row_bytes, to);
    return rows * row_bytes;
  }
  if (slice.row_stride - row_bytes < kWorthSkipping && slice.row_stride <= kFullRowsBytes) {
    return read_full_rows(slice, offset, rows, row_bytes, to);
  }
  for (uint64_t row = 0; row < rows; row++) {
    read_exactly(slice.file, offset + row * slice.row_stride, row_bytes, to + row * row_bytes);
  }
  return rows * row_bytes;
}

uint64_t SourceFiles::read_full_rows(const Slice& slice, uint64_t offset, uint64_t rows, uint64_t row_bytes,
                                     uint8_t* to) const {
  static thread_local std::vector<uint8_t> full_rows(kFullRowsBytes);
  const uint64_t rows_at_once = kFullRowsBytes / slice.row_stride;
  uint64_t bytes_read = 0;
  for (uint64_t row = 0; row < rows; row += rows_at_once) {
    const uint64_t count = std::min(rows_at_once, rows - row);
    // The last row ends with its last element: what follows may be past the end of the file.
    const uint64_t bytes = (count - 1) * slice.row_stride + row_bytes;
    read_exactly(slice.file, offset + row * slice.row_stride, bytes, full_rows.data());
    for (uint64_t i = 0; i < count; i++) {
      std::memcpy(to + (row + i) * row_bytes, full_rows.data() + i * slice.row_stride, row_bytes);
    }
    bytes_read += bytes;
  }
  return bytes_read;
}

void SourceFiles::read_exactly(uint64_t index, uint64_t offset, uint64_t bytes, uint8_t* to) const {
  const ProgramFile& file = program_.files[index];
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
