// The loops for vectors of any width, as the table that vector_code.h asks for.
#pragma once

#include "vector_code.h"
#include "vector_convert.h"
#include "vector_digest.h"
#include "vector_encode.h"

namespace layercast {
namespace {

template <class L>
constexpr VectorCode vector_code_of(const char* name) {
  return {name, greatest<L>, convert<L>, decode<L>, narrow<L>, encode<L>, digest_blocks<L>, copy_blocks<L>};
}

}  // namespace
}  // namespace layercast
