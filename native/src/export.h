// The live half's spans, one after the other, behind a header of the caller's -> a new file.
#pragma once

#include <span>
#include <string>

#include "arena.h"

namespace layercast {

/// The file appears whole or not at all. Returns its bytes.
uint64_t export_live(ThreadPool& pool, Arena& arena, const std::string& path, std::span<const uint8_t> header,
                     std::span<const Span> spans, const CancelToken& cancel);

}  // namespace layercast
