// An open file that is closed with its scope, and whole reads and writes.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>

namespace layercast {

struct OpenDescriptor {
  int number;
};

class File {
 public:
  /// Throws io, naming the path. What others may do with a file that is made is for the process's umask to say.
  File(const std::string& path, int flags);
  /// Takes over what is open already.
  File(std::string path, OpenDescriptor descriptor) : path_(std::move(path)), descriptor_(descriptor.number) {}
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  int descriptor() const { return descriptor_; }
  /// Leaves the file open until the process ends.
  void leave_open() { descriptor_ = -1; }
  const std::string& path() const { return path_; }

  uint64_t size_bytes() const;
  /// Takes the disk space at once; throws out_of_memory where there is none.
  void reserve(uint64_t bytes) const;
  void write_at(uint64_t offset, std::span<const uint8_t> bytes) const;
  /// Reads until `bytes` is full or the file ends; returns the bytes read.
  uint64_t read_at(uint64_t offset, std::span<uint8_t> bytes) const;

 private:
  std::string path_;
  int descriptor_;
};

/// A file that takes the place of `path` with commit(), and is gone without it. Until then it has no name, so that it is gone too when
/// this process is killed; only where the file system has no such files does it lie at `temporary_path`.
class NewFile {
 public:
  NewFile(const std::string& path, const std::string& temporary_path);
  ~NewFile();
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  const File& file() const { return file_; }
  void commit();

 private:
  std::string path_;
  std::string temporary_path_;
  bool has_name_ = false;
  File file_;

  OpenDescriptor open_unnamed();
  void give_name(const std::string& path) const;
};

}  // namespace layercast
