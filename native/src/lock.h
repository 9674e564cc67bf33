// One process an arena: an exclusive lock on a file, held until the process ends.
#pragma once

#include <string>

namespace layercast {

/// 0: taken, and the file holds this process's id. Otherwise the id of the process that holds it.
int acquire_lock(const std::string& path);

}  // namespace layercast
