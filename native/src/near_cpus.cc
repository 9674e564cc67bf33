#include "near_cpus.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <fstream>

namespace layercast {
namespace {

constexpr int kMostCpus = 1 << 16;

/// Reads a number from the front of `text`; -1: there is none.
int take_number(std::string_view& text) {
  int number = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || number < 0 || number >= kMostCpus) return -1;
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  return number;
}

bool take(std::string_view& text, char wanted) {
  if (!text.starts_with(wanted)) return false;
  text.remove_prefix(1);
  return true;
}

}  // namespace

std::vector<int> cpus_from_list(std::string_view list) {
  std::vector<int> cpus;
  while (!list.empty()) {
    const int first = take_number(list);
    const int last = take(list, '-') ? take_number(list) : first;
    if (first == -1 || last < first) return {};
    for (int cpu = first; cpu <= last; cpu++) cpus.push_back(cpu);
    if (!list.empty() && !take(list, ',')) return {};
  }
  return cpus;
}

std::vector<int> cpus_near(const std::string& pci_address, const std::string& sysfs) {
  if (pci_address.empty()) return {};
  std::string address = pci_address;
  std::ranges::transform(address, address.begin(), [](unsigned char letter) { return std::tolower(letter); });
  std::ifstream file(sysfs + "/bus/pci/devices/" + address + "/local_cpulist");
  std::string list;
  std::getline(file, list);
  return cpus_from_list(list);
}

}  // namespace layercast
