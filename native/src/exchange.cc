#include "exchange.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "error.h"
#include "timing.h"

namespace layercast {
namespace {

void check_disjoint(std::span<const Span> spans) {
  std::vector<Span> sorted(spans.begin(), spans.end());
  std::ranges::sort(sorted, {}, &Span::offset);
  uint64_t end = 0;
  for (const Span& span : sorted) {
    if (span.bytes == 0) continue;
    if (span.offset < end) throw_invalid("spans overlap at byte " + std::to_string(span.offset));
    end = span.offset + span.bytes;
  }
}

}  // namespace

SwapReport exchange(ThreadPool& pool, Arena& arena, std::span<const Span> spans, const CancelToken& cancel) {
  cancel.check();
  arena.check_spans(spans);
  check_disjoint(spans);
  Stopwatch watch;
  uint8_t* live = arena.base(Half::live);
  uint8_t* staging = arena.base(Half::staging);
  const std::vector<Span> parts = cut_spans(spans, arena.backend().part_bytes);
  std::atomic<uint64_t> bytes = 0;
  pool.each(parts.size(), nullptr, [&](uint64_t index, uint32_t lane) {
    const Span& part = parts[index];
    arena.check(arena.backend().exchange(arena.device(), lane, live + part.offset, staging + part.offset, part.bytes));
    bytes.fetch_add(part.bytes, std::memory_order_relaxed);
  });
  return {bytes, watch.lap_ns()};
}

uint64_t digest_spans(ThreadPool& pool, Arena& arena, Half half, std::span<const Span> spans,
                      const CancelToken& cancel) {
  cancel.check();
  arena.check_spans(spans);
  const uint8_t* base = arena.base(half);
  const std::vector<Span> parts = cut_spans(spans, arena.backend().part_bytes);
  std::atomic<uint64_t> digest = 0;
  pool.each(parts.size(), &cancel, [&](uint64_t index, uint32_t lane) {
    uint64_t sum = 0;
    arena.check(
        arena.backend().digest(arena.device(), lane, base, parts[index].offset, parts[index].bytes, &sum));
    digest.fetch_add(sum, std::memory_order_relaxed);
  });
  return digest;
}

}  // namespace layercast
