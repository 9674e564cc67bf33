// How much memory this host has, and how much of it a process could still be given.
#pragma once

#include <cstdint>

namespace layercast {

uint64_t total_host_bytes();

/// Page cache that the system would give up counts; sysconf counts only what nobody has used yet.
uint64_t available_host_bytes();

}  // namespace layercast
