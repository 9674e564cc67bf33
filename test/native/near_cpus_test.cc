// The CPUs near a device, and threads that stay on them.
#include "near_cpus.h"

#include <sched.h>

#include <array>
#include <filesystem>
#include <latch>

#include "check.h"
#include "support.h"
#include "thread_pool.h"

using namespace layercast;
using namespace layercast::test;

namespace {

using Cpus = std::vector<int>;

}  // namespace

LAW("a list of CPUs is ranges and numbers; what is no list names none") {
  CHECK(cpus_from_list("0-3,8,10-11") == Cpus({0, 1, 2, 3, 8, 10, 11}));
  CHECK(cpus_from_list("5") == Cpus({5}));
  for (const char* wrong : {"", ",", "3-", "3-1", "-1", "1,,2", "a", "0-99999999", "1 2"}) {
    CHECK(cpus_from_list(wrong).empty());
  }
}

LAW("the CPUs near a device are those that the system lists for its PCI address, in small letters; else none") {
  const TemporaryDirectory sysfs;
  const std::string device = sysfs / "bus/pci/devices/0000:ab:00.0";
  std::filesystem::create_directories(device);
  const std::string list = "2-3\n";
  write_file(device + "/local_cpulist", ByteVector(list.begin(), list.end()));
  CHECK(cpus_near("0000:AB:00.0", sysfs / "") == Cpus({2, 3}));
  CHECK(cpus_near("0000:AC:00.0", sysfs / "").empty());
  CHECK(cpus_near("", sysfs / "").empty());
}

LAW("threads stay on the CPUs they are given, and run anywhere where the process may use none of those") {
  cpu_set_t allowed;
  CHECK_EQUAL(sched_getaffinity(0, sizeof allowed, &allowed), 0);
  int first = 0;
  while (!CPU_ISSET(first, &allowed)) first++;
  ThreadPool pool(3);
  const auto cpus_of_threads = [&] {
    std::latch all_at_once(4);  // so that each thread takes one piece
    std::array<int, 4> counts = {};
    pool.each(4, nullptr, [&](uint64_t, uint32_t lane) {
      all_at_once.arrive_and_wait();
      cpu_set_t mine;
      if (sched_getaffinity(0, sizeof mine, &mine) == 0) counts[lane] = CPU_COUNT(&mine);
    });
    return counts;
  };
  const int all = CPU_COUNT(&allowed);
  pool.stay_on(Cpus{CPU_SETSIZE});
  CHECK((cpus_of_threads() == std::array{all, all, all, all}));
  pool.stay_on(Cpus{first, CPU_SETSIZE});
  CHECK((cpus_of_threads() == std::array{1, 1, 1, all}));  // the last is not the pool's
}
