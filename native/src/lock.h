// One process an arena: an exclusive lock on a file, held until the process ends. And a shared one, by which a holder
// of device memory sees that somebody still lives who needs it. And a lock that is given back again and again, by which an
// engine computes only while nobody changes what it reads.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "file.h"

namespace layercast {

/// Takes the lock, and writes `holder` into the file: the text by which others know who has it. Returns nothing when it is taken,
/// otherwise what the file says of the process that has it: empty while that one has not written yet.
std::optional<std::string> acquire_lock(const std::string& path, const std::string& holder);

/// Takes the lock beside others who share it; waits for one who has it alone. Throws io after `timeout_ms`.
void share_lock(const std::string& path, uint64_t timeout_ms);

enum class LockKind { shared, exclusive };

/// A lock on a file, taken and given back any number of times; given back too when this object or the process ends, however
/// that ends. Several objects of one process are as different from each other as those of different processes.
class FileLock {
 public:
  /// Makes the file where there is none.
  explicit FileLock(const std::string& path);
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

  /// Never waits: false where another has the lock so that this one cannot. What this object had before is then given back.
  bool try_take(LockKind kind);
  /// Does nothing where it is not taken.
  void give_back();

 private:
  File file_;
};

}  // namespace layercast
