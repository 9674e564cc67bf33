// One process an arena: an exclusive lock on a file, held until the process ends. And a shared one, by which a holder
// of device memory sees that somebody still lives who needs it.
#pragma once

#include <string>

namespace layercast {

/// 0: taken, and the file holds this process's id. Otherwise the id of the process that holds it.
int acquire_lock(const std::string& path);

/// Takes the lock beside others who share it; waits for one who has it alone. Throws io after `timeout_ms`.
void share_lock(const std::string& path, int timeout_ms = 5000);

}  // namespace layercast
