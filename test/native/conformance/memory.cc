// Halves as memory: filling, reading back, exchanging, digesting, in pinned memory of the host too; and what the
// backend says when it cannot.
#include <cstring>

#include "digest.h"
#include "program.h"
#include "values.h"

namespace layercast::conformance {
namespace {

constexpr uint64_t kBytes = (1 << 20) + 5000;

/// Offset of a, offset of b, bytes: aligned alike, apart, and in no way.
struct Part {
  uint64_t a;
  uint64_t b;
  uint64_t bytes;
};

constexpr Part kParts[] = {
    {0, 0, kBytes}, {256, 4096, 70'000}, {3, 19, 1000},  {5, 5, 11},
    {15, 31, 1},    {1, 2, 4097},        {7, 0, 65'536}, {64, 64, 0},
};

ByteVector random_bytes(uint64_t bytes, uint32_t seed) {
  std::mt19937 random(seed);
  ByteVector made(bytes);
  for (uint8_t& byte : made) byte = static_cast<uint8_t>(random());
  return made;
}

ByteVector read(const Subject& subject, const uint8_t* at, uint64_t bytes) {
  ByteVector host(bytes);
  subject.check(subject.backend.read_back(subject.device, 0, at, bytes, host.data()));
  return host;
}

/// Brings bytes into a half, as the values of a program.
void write(const Subject& subject, const OpenHalf& half, const ByteVector& bytes) {
  const uint64_t elements = bytes.size() / 2;
  Op op = test::filled(Scheme::none, DType::bf16, 1, elements);
  const OpSpec op_spec = {op, DType::bf16, DType::none};
  const RunSpec spec = {&op_spec, 1, half.base()};
  const Tile tile = {0, 0, 1, 0, elements};
  Run* run = nullptr;
  uint8_t* host = nullptr;
  BadElements bad;
  RunTotals totals;
  subject.check(subject.backend.begin_run(subject.device, &spec, &run));
  subject.check(subject.backend.buffer(run, 0, elements * 2, &host));
  std::memcpy(host, bytes.data(), elements * 2);
  subject.check(subject.backend.put(run, 0, &tile, host));
  subject.check(subject.backend.finish(run, &bad, &totals));
  subject.backend.end_run(run);
}

void check_filling(const Subject& subject, Score& score) {
  const OpenHalf half(subject, HalfKind::own, kBytes);
  for (const Part& part : kParts) {
    score.law("filling touches its bytes alone", [&] {
      subject.check(subject.backend.fill(subject.device, 0, half.base(), kBytes, 0x11));
      subject.check(subject.backend.fill(subject.device, 1, half.base() + part.a, part.bytes, 0x22));
      ByteVector expected(kBytes, 0x11);
      std::fill_n(expected.begin() + static_cast<int64_t>(part.a), std::min(part.bytes, kBytes - part.a), 0x22);
      require(read(subject, half.base(), kBytes) == expected, "other bytes than asked for were filled");
    });
  }
}

void check_digesting(const Subject& subject, Score& score) {
  const OpenHalf half(subject, HalfKind::own, kBytes);
  const ByteVector bytes = random_bytes(kBytes, 1);
  write(subject, half, bytes);
  for (const Part& part : kParts) {
    score.law("the digest of a range is that of its bytes", [&] {
      uint64_t sum = 1;
      subject.check(subject.backend.digest(subject.device, 0, half.base(), part.a, part.bytes, &sum));
      require(sum == digest_bytes(bytes.data() + part.a, part.a, part.bytes),
              "it is not, of " + std::to_string(part.bytes) + " bytes at " + std::to_string(part.a));
    });
  }
}

void check_exchanging(const Subject& subject, HalfKind kind, const std::string& where, Score& score) {
  const OpenHalf live(subject, HalfKind::own, kBytes);
  const OpenHalf staging(subject, kind, kBytes);
  for (const Part& part : kParts) {
    if (part.a + part.bytes > kBytes || part.b + part.bytes > kBytes) continue;
    score.law("an exchange with a half in " + where + " swaps its bytes alone, and twice undoes itself", [&] {
      ByteVector a = random_bytes(kBytes, 2), b = random_bytes(kBytes, 3);
      write(subject, live, a);
      write(subject, staging, b);
      const auto exchange = [&] {
        uint8_t* at_a = live.base() + part.a;
        subject.check(subject.backend.exchange(subject.device, 1, at_a, staging.base() + part.b, part.bytes));
        std::swap_ranges(a.data() + part.a, a.data() + part.a + part.bytes, b.data() + part.b);
        require(read(subject, live.base(), kBytes) == a && read(subject, staging.base(), kBytes) == b,
                "bytes are not where they belong, of " + std::to_string(part.bytes));
      };
      exchange();
      exchange();
    });
  }
}

/// Recipes write into a half in the host's memory as into any other.
void check_host_half(const Subject& subject, Score& score) {
  constexpr uint64_t kHalfBytes = 4 << 20;
  const OpenHalf half(subject, HalfKind::host, kHalfBytes);
  const Oracle oracle(subject, kHalfBytes);
  for (const Scheme scheme : test::kEveryScheme) {
    for (const uint64_t cols : {1000, 1009}) {
      score.law("a half in the host's memory takes what one of the device's takes", [&] {
        Program program;
        const DType out = scheme == Scheme::none ? DType::bf16 : DType::f8_e4m3;
        add_op(program, scheme, DType::bf16, DType::none, out, 300, cols, 1, false,
               matrix_of(value_classes()[1], DType::bf16, 300, cols, 4));
        const Outcome got = run_program(subject, program, half.base(), by_buffer(subject, program));
        require_equal(program, got, oracle(program));
      });
    }
  }
}

void require_refusal(const Subject& subject, Status got, Status want, const std::string& part_of_sentence) {
  require(got == want, "its status is " + std::to_string(static_cast<int>(got)));
  const std::string sentence = subject.backend.last_error();
  require(sentence.find(part_of_sentence) != std::string::npos,
          "\"" + sentence + "\" does not say \"" + part_of_sentence + "\"");
}

void check_refusals(const Subject& subject, Score& score) {
  score.law("a device is described", [&] {
    DeviceFacts facts = {};
    subject.check(subject.backend.describe(subject.device, &facts));
    require(facts.name[0] != '\0' && facts.total_bytes >= facts.free_bytes && facts.free_bytes > 0, "it is not");
  });
  score.law("a half that cannot be had is out_of_memory, with how much was asked for", [&] {
    const HalfSpec spec = {HalfKind::own, 1ull << 50, -1, 0, nullptr};
    uint8_t* base = nullptr;
    require_refusal(subject, subject.backend.open_half(subject.device, &spec, &base), Status::out_of_memory,
                    std::to_string(spec.bytes));
  });
  if (subject.is_cpu()) return;
  score.law("a device that is not there is named, with how many are", [&] {
    uint32_t count = 0;
    Device* device = nullptr;
    subject.check(subject.backend.device_count(&count));
    require_refusal(subject, subject.backend.open(99, 1, &device), Status::failed, std::to_string(count));
    require_refusal(subject, subject.backend.open(99, 1, &device), Status::failed, "99");
  });
}

}  // namespace

void check_memory(const Subject& subject, Score& score) {
  check_filling(subject, score);
  check_digesting(subject, score);
  check_exchanging(subject, HalfKind::own, "the device's memory", score);
  check_exchanging(subject, HalfKind::host, "the host's memory", score);
  check_host_half(subject, score);
  check_refusals(subject, score);
}

}  // namespace layercast::conformance
