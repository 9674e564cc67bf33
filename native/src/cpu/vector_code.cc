#include "vector_code.h"

#include <cstdlib>
#include <string>
#include <vector>

#include "../error.h"

namespace layercast {

#ifdef LAYERCAST_X86_VECTORS
const VectorCode& avx2_vector_code();
const VectorCode& avx512_vector_code();
#endif

namespace {

std::vector<const VectorCode*> detect() {
  std::vector<const VectorCode*> codes = {&portable_vector_code()};
#ifdef LAYERCAST_X86_VECTORS
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) {
    codes.push_back(&avx2_vector_code());
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      codes.push_back(&avx512_vector_code());
    }
  }
#endif
  return codes;
}

}  // namespace

std::span<const VectorCode* const> available_vector_codes() {
  static const std::vector<const VectorCode*> codes = detect();
  return codes;
}

const VectorCode& vector_code_named(std::string_view name) {
  std::string names;
  for (const VectorCode* code : available_vector_codes()) {
    if (code->name == name) return *code;
    names += (names.empty() ? "" : ", ") + std::string(code->name);
  }
  throw_invalid("LAYERCAST_VECTORS must be what this machine has (" + names + "), not " + std::string(name));
}

const VectorCode& chosen_vector_code() {
  const char* name = std::getenv("LAYERCAST_VECTORS");
  return name == nullptr ? *available_vector_codes().back() : vector_code_named(name);
}

}  // namespace layercast
