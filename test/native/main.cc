// Runs every law, or those whose name holds the first argument. Exit code 0 only when all held.
#include <cstring>
#include <exception>

#include "check.h"

int main(int argc, char** argv) {
  using namespace layercast::test;
  int passed = 0;
  int failed = 0;
  for (const Law& law : laws()) {
    if (argc > 1 && std::strstr(law.name, argv[1]) == nullptr) continue;
    failures = 0;
    try {
      law.body();
    } catch (const std::exception& error) {
      report_failure(__FILE__, __LINE__, std::string("thrown: ") + error.what());
    }
    if (failures == 0) {
      passed++;
    } else {
      failed++;
      std::cout << "FAILED (" << failures << " checks): " << law.name << "\n";
    }
  }
  std::cout << passed << " passed, " << failed << " failed" << std::endl;
  return failed == 0 ? 0 : 1;
}
