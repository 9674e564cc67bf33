// Which CPUs are near a device: those of the memory that its bus is attached to. On a host with several such memories
// (NUMA nodes) a thread that reads files for a GPU, and the pinned buffers that it allocates, belong there.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace layercast {

/// "0-3,8" -> 0, 1, 2, 3, 8. Empty for what is no such list.
std::vector<int> cpus_from_list(std::string_view list);

/// By the device's PCI address, such as 0000:17:00.0. Empty where this system does not say, or there is no address.
std::vector<int> cpus_near(const std::string& pci_address, const std::string& sysfs = "/sys");

}  // namespace layercast
