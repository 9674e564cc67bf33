// The arena's halves, their exchange, their digest, and the export of the live one.
#include "arena.h"

#include <algorithm>
#include <random>

#include "check.h"
#include "digest.h"
#include "exchange.h"
#include "export.h"
#include "support.h"

using namespace layercast;
using namespace layercast::test;

namespace {

ByteVector random_bytes(uint64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  ByteVector bytes(count);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}

void fill(Bench& bench, Half half, const ByteVector& bytes) {
  std::copy(bytes.begin(), bytes.end(), bench.arena->base(half));
}

ByteVector live(const Bench& bench) {
  const uint8_t* base = bench.arena->base(Half::live);
  return ByteVector(base, base + bench.arena->data_bytes());
}

/// The digest as digest.h defines it, from a block's 64 words.
uint64_t slow_digest(const ByteVector& arena, const Span& span) {
  uint64_t sum = 0;
  for (uint64_t block = 0; block * 256 < arena.size(); block++) {
    uint64_t words = 0;
    for (uint64_t i = 0; i < 256; i++) {
      const uint64_t at = block * 256 + i;
      const bool inside = at >= span.offset && at < span.offset + span.bytes;
      const uint64_t byte = inside ? arena[at] : 0;
      words += (digest_mix(i / 4 + 1) | 1) * (byte << (8 * (i % 4)));
    }
    sum += (digest_mix(~block) | 1) * words;
  }
  return sum;
}

}  // namespace

LAW("a created live file is the header and the reserved bytes, and can be attached to by the same header only") {
  Bench bench(10'000);
  const std::string path = bench.directory / "live";
  ByteVector bytes = random_bytes(10'000, 1);
  fill(bench, Half::live, bytes);
  ByteVector file = bench.header;
  file.insert(file.end(), bytes.begin(), bytes.end());
  CHECK(read_file(path) == file);

  ArenaOptions options = {path, OpenMode::attach, bench.header, 10'000};
  const Arena again(open_cpu(), options);
  CHECK(std::equal(bytes.begin(), bytes.end(), again.base(Half::live)));
  options.data_bytes = 9'999;
  CHECK_EQUAL(ERROR_OF(Arena(open_cpu(), options)).code_name(), "NATIVE_INVALID_ARGUMENT");
  options.data_bytes = 10'000;
  ByteVector other_header = bench.header;
  other_header[4095] = 'x';
  options.header = other_header;
  CHECK_EQUAL(ERROR_OF(Arena(open_cpu(), options)).code_name(), "NATIVE_INVALID_ARGUMENT");
  CHECK(read_file(path) == file);
}

LAW("an arena that the disk has no room for leaves nothing behind, and the old file as it was") {
  TemporaryDirectory directory;
  const ByteVector header(4096, uint8_t{' '});
  write_file(directory / "live", {1, 2, 3});
  const ArenaOptions options = {directory / "live", OpenMode::create, header, uint64_t{1} << 50};
  const NativeError error = ERROR_OF(Arena(open_cpu(), options));
  CHECK_EQUAL(error.code_name(), "NATIVE_OUT_OF_MEMORY");
  CHECK_EQUAL(detail(error, "bytes"), static_cast<double>((uint64_t{1} << 50) + 4096));
  CHECK(read_file(directory / "live") == (ByteVector{1, 2, 3}));
  CHECK(!std::filesystem::exists(directory / "live.new"));
}

LAW("staging is poisoned on request, kept while open, and refused while it is not") {
  Bench bench(3'000'000);
  const ByteVector poisoned = bench.staging();
  CHECK(std::all_of(poisoned.begin(), poisoned.end(), [](uint8_t byte) { return byte == 0xA5; }));
  bench.arena->base(Half::staging)[7] = 1;
  bench.arena->open_staging(*bench.pool, Where::device, false);
  CHECK_EQUAL(+bench.staging()[7], 1);
  bench.arena->open_staging(*bench.pool, Where::device, true);
  CHECK_EQUAL(+bench.staging()[7], 0xA5);
  bench.arena->close_staging();
  CHECK_EQUAL(ERROR_OF(bench.arena->base(Half::staging)).code_name(), "NATIVE_INVALID_ARGUMENT");
}

LAW("staging and the arena cannot be closed while work is in flight") {
  Bench bench(4096);
  const std::shared_ptr<Arena> arena = std::move(bench.arena);
  {
    const ArenaUse use(arena);
    CHECK_EQUAL(ERROR_OF(arena->close_staging()).code_name(), "NATIVE_INVALID_ARGUMENT");
    CHECK_EQUAL(ERROR_OF(arena->open_staging(*bench.pool, Where::device, false)).code_name(), "NATIVE_INVALID_ARGUMENT");
    CHECK_EQUAL(ERROR_OF(arena->close()).code_name(), "NATIVE_INVALID_ARGUMENT");
    arena->base(Half::staging)[0] = 1;
  }
  arena->close();
  CHECK_EQUAL(ERROR_OF(arena->base(Half::live)).code_name(), "NATIVE_INVALID_ARGUMENT");
}

LAW("an exchange swaps the spans and nothing else, and undoes itself") {
  constexpr uint64_t kBytes = 5'000'001;
  Bench bench(kBytes, 4);
  const ByteVector a = random_bytes(kBytes, 1), b = random_bytes(kBytes, 2);
  fill(bench, Half::live, a);
  fill(bench, Half::staging, b);
  const std::vector<Span> spans = {{3'000'000, 2'000'001}, {0, 1}, {17, 0}, {17, 1'500'000}};
  ByteVector expected_live = a, expected_staging = b;
  for (const Span& span : spans) {
    const auto from = static_cast<ptrdiff_t>(span.offset);
    std::swap_ranges(expected_live.begin() + from, expected_live.begin() + from + static_cast<ptrdiff_t>(span.bytes),
                     expected_staging.begin() + from);
  }
  CHECK_EQUAL(exchange(*bench.pool, *bench.arena, spans, CancelToken()).bytes, 3'500'002u);
  CHECK(live(bench) == expected_live);
  CHECK(bench.staging() == expected_staging);
  exchange(*bench.pool, *bench.arena, spans, CancelToken());
  CHECK(live(bench) == a);
  CHECK(bench.staging() == b);
}

LAW("an exchange of overlapping spans, or past the end, or cancelled before it began, changes nothing") {
  Bench bench(1000);
  const ByteVector before = live(bench);
  const std::pair<std::vector<Span>, const char*> refused[] = {
      {{{100, 100}, {0, 101}}, "NATIVE_INVALID_ARGUMENT"},
      {{{0, 10}, {0, 10}}, "NATIVE_INVALID_ARGUMENT"},
      {{{999, 2}}, "NATIVE_INVALID_ARGUMENT"},
      {{{UINT64_MAX, 1}}, "NATIVE_INVALID_ARGUMENT"},
  };
  for (const auto& [spans, code] : refused) {
    CHECK_EQUAL(ERROR_OF(exchange(*bench.pool, *bench.arena, spans, CancelToken())).code_name(), code);
  }
  CancelToken cancel;
  cancel.cancel();
  const std::vector<Span> whole = {{0, 1000}};
  CHECK_EQUAL(ERROR_OF(exchange(*bench.pool, *bench.arena, whole, cancel)).code_name(), "NATIVE_CANCELLED");
  CHECK(live(bench) == before);
}

LAW("the digest is the one its definition gives, of any span") {
  const ByteVector bytes = random_bytes(2000, 3);
  std::mt19937 random(4);
  for (int i = 0; i < 200; i++) {
    const uint64_t offset = random() % 2000;
    const Span span = {offset, random() % (2001 - offset)};
    CHECK_EQUAL(digest_bytes(bytes.data() + offset, offset, span.bytes), slow_digest(bytes, span));
  }
}

LAW("the digest of the whole is the sum over its parts, however it is cut, and knows where bytes lie") {
  constexpr uint64_t kBytes = 3'000'000;
  Bench bench(kBytes);
  const ByteVector bytes = random_bytes(kBytes, 5);
  fill(bench, Half::live, bytes);
  const auto digest = [&](const std::vector<Span>& spans) {
    return digest_spans(*bench.pool, *bench.arena, Half::live, spans, CancelToken());
  };
  const uint64_t whole = digest({{0, kBytes}});
  CHECK_EQUAL(whole, digest_bytes(bytes.data(), 0, kBytes));
  CHECK_EQUAL(whole, digest({{1'000'003, kBytes - 1'000'003}, {0, 77}, {77, 1'000'003 - 77}}));
  uint8_t* base = bench.arena->base(Half::live);
  std::swap_ranges(base, base + 256, base + 256);
  CHECK(digest({{0, kBytes}}) != whole);
  std::swap_ranges(base, base + 256, base + 256);
  base[2'999'999] ^= 0x80;
  base[1'000'003] ^= 0x80;
  CHECK(digest({{0, kBytes}}) != whole);
}

LAW("an export is the header and the spans in their order, whole or not at all") {
  constexpr uint64_t kBytes = 3'000'000;
  Bench bench(kBytes);
  const ByteVector bytes = random_bytes(kBytes, 6);
  fill(bench, Half::live, bytes);
  const ByteVector header = {1, 2, 3, 4, 5};
  const std::vector<Span> spans = {{2'000'000, 1'000'000}, {10, 1'200'000}};
  const std::string path = bench.directory / "export";
  CHECK_EQUAL(export_live(*bench.pool, *bench.arena, path, header, spans, CancelToken()), 2'200'005u);
  ByteVector expected = header;
  expected.insert(expected.end(), bytes.begin() + 2'000'000, bytes.end());
  expected.insert(expected.end(), bytes.begin() + 10, bytes.begin() + 1'200'010);
  CHECK(read_file(path) == expected);

  CancelToken cancel;
  cancel.cancel();
  const std::string other = bench.directory / "other";
  CHECK_EQUAL(ERROR_OF(export_live(*bench.pool, *bench.arena, other, header, spans, cancel)).code_name(),
              "NATIVE_CANCELLED");
  const std::string nowhere = bench.directory / "nowhere/export";
  CHECK_EQUAL(ERROR_OF(export_live(*bench.pool, *bench.arena, nowhere, header, spans, CancelToken())).code_name(),
              "NATIVE_IO");
  const auto entries = std::filesystem::directory_iterator(std::filesystem::path(path).parent_path());
  CHECK_EQUAL(std::distance(begin(entries), end(entries)), 2);  // the live file and the first export
}
