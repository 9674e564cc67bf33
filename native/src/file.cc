#include "file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "error.h"

namespace layercast {

namespace {

/// Less what the umask takes.
constexpr int kMode = 0666;

std::string directory_of(const std::string& path) {
  const size_t end = path.rfind('/');
  if (end == std::string::npos) return ".";
  return end == 0 ? "/" : path.substr(0, end);
}

}  // namespace

File::File(const std::string& path, int flags)
    : path_(path), descriptor_(open(path.c_str(), flags | O_CLOEXEC, kMode)) {
  if (descriptor_ == -1) throw_errno("opening " + path, errno);
}

File::~File() {
  if (descriptor_ != -1) close(descriptor_);
}

uint64_t File::size_bytes() const {
  struct stat status;
  if (fstat(descriptor_, &status) == -1) throw_errno("looking at " + path_, errno);
  return static_cast<uint64_t>(status.st_size);
}

void File::reserve(uint64_t bytes) const {
  if (bytes == 0) return;
  int error_number;
  do {
    error_number = posix_fallocate(descriptor_, 0, static_cast<off_t>(bytes));
  } while (error_number == EINTR);
  if (error_number != 0) throw_errno("reserving " + std::to_string(bytes) + " bytes for " + path_, error_number, bytes);
}

void File::write_at(uint64_t offset, std::span<const uint8_t> bytes) const {
  while (!bytes.empty()) {
    const ssize_t put = pwrite(descriptor_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (put == -1 && errno == EINTR) continue;
    if (put == -1) throw_errno("writing " + path_, errno, bytes.size());
    offset += static_cast<uint64_t>(put);
    bytes = bytes.subspan(static_cast<size_t>(put));
  }
}

uint64_t File::read_at(uint64_t offset, std::span<uint8_t> bytes) const {
  uint64_t done = 0;
  while (done < bytes.size()) {
    const ssize_t got = pread(descriptor_, bytes.data() + done, bytes.size() - done, static_cast<off_t>(offset + done));
    if (got == -1 && errno == EINTR) continue;
    if (got == -1) throw_errno("reading " + path_, errno);
    if (got == 0) break;
    done += static_cast<uint64_t>(got);
  }
  return done;
}

NewFile::NewFile(const std::string& path, const std::string& temporary_path)
    : path_(path), temporary_path_(temporary_path), file_(path, open_unnamed()) {}

NewFile::~NewFile() {
  if (has_name_) unlink(temporary_path_.c_str());
}

OpenDescriptor NewFile::open_unnamed() {
  const int unnamed = open(directory_of(path_).c_str(), O_RDWR | O_TMPFILE | O_CLOEXEC, kMode);
  if (unnamed != -1) return {unnamed};
  // The file system may not know such files; whatever else is wrong is wrong with this one too.
  const int named = open(temporary_path_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, kMode);
  if (named == -1) throw_errno("opening " + temporary_path_, errno);
  has_name_ = true;
  return {named};
}

/// Not by the descriptor alone, which needs a capability.
void NewFile::give_name(const std::string& path) const {
  const std::string link = "/proc/self/fd/" + std::to_string(file_.descriptor());
  if (linkat(AT_FDCWD, link.c_str(), AT_FDCWD, path.c_str(), AT_SYMLINK_FOLLOW) != 0) {
    throw_errno("naming " + path, errno);
  }
}

void NewFile::commit() {
  if (!has_name_) {
    unlink(temporary_path_.c_str());  // what a process that was killed has left
    give_name(temporary_path_);
    has_name_ = true;
  }
  if (std::rename(temporary_path_.c_str(), path_.c_str()) != 0) throw_errno("renaming " + temporary_path_, errno);
  has_name_ = false;
}

}  // namespace layercast
