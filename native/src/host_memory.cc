#include "host_memory.h"

#include <unistd.h>

#include <fstream>
#include <string>

namespace layercast {
namespace {

uint64_t bytes_of_pages(int name) {
  return static_cast<uint64_t>(sysconf(name)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

}  // namespace

uint64_t total_host_bytes() { return bytes_of_pages(_SC_PHYS_PAGES); }

uint64_t available_host_bytes() {
  std::ifstream meminfo("/proc/meminfo");
  std::string name, unit;
  for (uint64_t kib = 0; meminfo >> name >> kib; std::getline(meminfo, unit)) {
    if (name == "MemAvailable:") return kib * 1024;
  }
  return bytes_of_pages(_SC_AVPHYS_PAGES);
}

}  // namespace layercast
