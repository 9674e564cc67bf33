// One process an arena: an exclusive lock on a file, held until the process ends. And a shared one, by which a holder
// of device memory sees that somebody still lives who needs it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace layercast {

/// Takes the lock, and writes `holder` into the file: the text by which others know who has it. Returns nothing when it is taken,
/// otherwise what the file says of the process that has it: empty while that one has not written yet.
std::optional<std::string> acquire_lock(const std::string& path, const std::string& holder);

/// Takes the lock beside others who share it; waits for one who has it alone. Throws io after `timeout_ms`.
void share_lock(const std::string& path, uint64_t timeout_ms);

}  // namespace layercast
