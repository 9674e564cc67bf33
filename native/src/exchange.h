// Swaps bytes of the halves. Done twice it undoes itself, so once begun it is never left in the middle.
#pragma once

#include <span>

#include "arena.h"

namespace layercast {

struct SwapReport {
  uint64_t bytes;
  uint64_t swap_ns;
};

/// The token counts only before the first byte. Spans must not overlap.
SwapReport exchange(ThreadPool& pool, Arena& arena, std::span<const Span> spans, const CancelToken& cancel);

/// The digest of a half's spans, as LayerReport.digest sums it.
uint64_t digest_spans(ThreadPool& pool, Arena& arena, Half half, std::span<const Span> spans,
                      const CancelToken& cancel);

}  // namespace layercast
