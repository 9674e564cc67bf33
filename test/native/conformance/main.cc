// Does a backend do what the CPU's does, to the bit?
//   layercast_conformance [--backend cpu|cuda|PATH.so] [--device N] [--quick] [--scheme NAME] [--bench]
// The oracle of every backend is the CPU's; the CPU's own is a slow reference. --quick leaves out most shapes and what
// needs much memory, --scheme all but one scheme's matrices, --bench only times the kernels. Exit code 0 only when all held.
#include <charconv>
#include <cstring>

#include "cuda_library.h"
#include "suite.h"

namespace layercast::conformance {
namespace {

constexpr const char* kUsage =
    "usage: layercast_conformance [--backend cpu|cuda|PATH.so] [--device N] [--quick] [--scheme NAME] [--bench]";

struct Arguments {
  Options options;
  uint64_t hold_bytes = 0;  // --hold: for the process that this one starts
};

template <class Number>
Number number_of(const char* text) {
  Number number = 0;
  const char* end = text + std::strlen(text);
  const auto parsed = std::from_chars(text, end, number);
  require(parsed.ec == std::errc{} && parsed.ptr == end, kUsage);
  return number;
}

Arguments parse(int argc, char** argv) {
  Arguments arguments;
  for (int i = 1; i < argc; i++) {
    const std::string name = argv[i];
    if (name == "--quick") {
      arguments.options.quick = true;
    } else if (name == "--bench") {
      arguments.options.bench = true;
    } else {
      require(i + 1 < argc, kUsage);
      const char* value = argv[++i];
      if (name == "--backend") {
        arguments.options.backend = value;
      } else if (name == "--device") {
        arguments.options.device = number_of<int>(value);
      } else if (name == "--scheme") {
        arguments.options.scheme = value;
      } else if (name == "--hold") {
        arguments.hold_bytes = number_of<uint64_t>(value);
      } else {
        require(false, kUsage);
      }
    }
  }
  return arguments;
}

const Backend& backend_of(const std::string& name) {
  if (name == "cpu") return cpu_backend();
  static const CudaLibrary library = name == "cuda" ? cuda_library() : open_cuda_library(name);
  require(library.backend != nullptr, library.unavailable);
  return *library.backend;
}

void check_all(const Subject& subject, const Options& options, Score& score) {
  if (!options.scheme.empty()) return check_recipes(subject, options, score);
  check_conversions(subject, options, score);
  check_recipes(subject, options, score);
  check_derived(subject, score);
  check_fetching(subject, score);
  check_runs(subject, score);
  check_memory(subject, score);
  check_held_memory(subject, options, score);
  if (!options.quick) check_large(subject, score);
}

int run(const Arguments& arguments) {
  const Options& options = arguments.options;
  const Backend& backend = backend_of(options.backend);
  if (arguments.hold_bytes != 0) return hold_memory(backend, options.device, arguments.hold_bytes);
  ThreadPool pool(options.quick ? 3 : default_thread_count());
  Subject subject = {backend, nullptr, pool};
  subject.check(backend.open(options.device, pool.lanes(), &subject.device));
  Score score;
  if (options.bench) {
    bench(subject);
  } else {
    check_all(subject, options, score);
    std::cout << score.passed() << " passed, " << score.failed() << " failed" << std::endl;
  }
  backend.close(subject.device);
  return score.failed() == 0 ? 0 : 1;
}

}  // namespace
}  // namespace layercast::conformance

int main(int argc, char** argv) {
  try {
    return layercast::conformance::run(layercast::conformance::parse(argc, argv));
  } catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
    return 2;
  }
}
