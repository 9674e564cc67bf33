// Tiles that the backend fetches by itself, from a mapped file that it has pinned: the same numbers as by its buffers.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "program.h"
#include "values.h"

namespace layercast::conformance {
namespace {

constexpr uint64_t kFileBytes = 16 << 20;
constexpr uint64_t kOffset = 4096 + 8;  // of the matrix in the file

/// A file of zeros, mapped to be read only.
class MappedFile {
 public:
  explicit MappedFile(uint64_t bytes) : bytes_(bytes) {
    fd_ = open((directory_ / "source").c_str(), O_RDWR | O_CREAT, 0600);
    require(fd_ != -1 && ftruncate(fd_, static_cast<off_t>(bytes)) == 0, "a file cannot be made");
    void* mapped = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd_, 0);
    require(mapped != MAP_FAILED, "a file cannot be mapped");
    at_ = static_cast<const uint8_t*>(mapped);
  }
  ~MappedFile() {
    munmap(const_cast<uint8_t*>(at_), bytes_);
    close(fd_);
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const uint8_t* at() const { return at_; }

  /// Writes the matrix row by row, `stride` bytes apart.
  void write(const ByteVector& matrix, uint64_t row_bytes, uint64_t stride) const {
    for (uint64_t row = 0; row < matrix.size() / row_bytes; row++) {
      const auto offset = static_cast<off_t>(kOffset + row * stride);
      const ssize_t written = pwrite(fd_, &matrix[row * row_bytes], row_bytes, offset);
      require(written == static_cast<ssize_t>(row_bytes), "a file cannot be written");
    }
  }

 private:
  test::TemporaryDirectory directory_;
  uint64_t bytes_;
  int fd_ = -1;
  const uint8_t* at_ = nullptr;
};

/// Fetches a tile of the program's only op, its rows in two parts.
Bring by_fetch(const Subject& subject, const Program& program, const MappedFile& file, uint64_t stride) {
  return [&subject, &program, &file, stride](Run* run, uint32_t lane, const Tile& tile) {
    const uint64_t element_bytes = dtype_bytes(program.specs[0].source);
    const uint64_t row_bytes = tile.cols * element_bytes;
    const uint8_t* first = file.at() + kOffset + tile.first_row * stride + tile.first_col * element_bytes;
    const uint64_t some = (tile.rows + 1) / 2;
    const HostRows parts[] = {
        {first, stride, some, row_bytes, 0, row_bytes},
        {first + some * stride, stride, tile.rows - some, row_bytes, some * row_bytes, row_bytes}};
    subject.check(subject.backend.fetch(run, lane, &tile, parts, tile.rows > some ? 2 : 1));
    return static_cast<const uint8_t*>(nullptr);
  };
}

/// What of the program's only matrix is zero and not to be fetched.
struct Zeros {
  uint64_t first_row;
  uint64_t end_row;
  uint64_t cols;  // the last
};

/// Fetches a tile of the program's only op but for what is zero; a tile that is nothing else is read.
Bring by_fetch_around(const Subject& subject, const Program& program, const MappedFile& file, const Zeros& zeros) {
  return [&, zeros](Run* run, uint32_t lane, const Tile& tile) {
    const Op& op = program.specs[0].op;
    const uint64_t element_bytes = dtype_bytes(program.specs[0].source);
    const uint64_t stride = op.cols * element_bytes, to_stride = tile.cols * element_bytes;
    const uint64_t end_col = std::min(tile.first_col + tile.cols, op.cols - zeros.cols);
    std::vector<HostRows> parts;
    for (const auto& [from, to] : {std::pair{uint64_t{0}, zeros.first_row}, std::pair{zeros.end_row, op.rows}}) {
      const uint64_t first = std::max(tile.first_row, from), end = std::min(tile.first_row + tile.rows, to);
      if (first >= end || tile.first_col >= end_col) continue;
      const uint8_t* at = file.at() + kOffset + first * stride + tile.first_col * element_bytes;
      const uint64_t row_bytes = (end_col - tile.first_col) * element_bytes;
      parts.push_back({at, stride, end - first, row_bytes, (first - tile.first_row) * to_stride, to_stride});
    }
    if (parts.empty()) return by_buffer(subject, program)(run, lane, tile);
    subject.check(subject.backend.fetch(run, lane, &tile, parts.data(), parts.size()));
    return static_cast<const uint8_t*>(nullptr);
  };
}

void check_zeros(const Subject& subject, const MappedFile& file, Score& score) {
  constexpr uint64_t kHalfBytes = 4 << 20;
  constexpr uint64_t kRows = 256, kCols = 384;
  const OpenHalf half(subject, HalfKind::own, kHalfBytes);
  const Oracle oracle(subject, kHalfBytes);
  for (const Scheme scheme : test::kEveryScheme) {
    for (const DType source : {DType::bf16, DType::f32}) {
      for (const Zeros& zeros : {Zeros{96, 128, 0}, Zeros{96, 128, 200}, Zeros{200, 256, 1}, Zeros{0, 130, 64}}) {
        score.law("what fetched rows do not fill is zero", [&] {
          const uint64_t element_bytes = dtype_bytes(source);
          ByteVector matrix = matrix_of(value_classes()[0], source, kRows, kCols, 1);
          file.write(matrix, kCols * element_bytes, kCols * element_bytes);  // zeros it does not have
          for (uint64_t i = 0; i < matrix.size(); i++) {
            const uint64_t row = i / element_bytes / kCols, col = i / element_bytes % kCols;
            if ((row >= zeros.first_row && row < zeros.end_row) || col >= kCols - zeros.cols) matrix[i] = 0;
          }
          Program program;
          program.tile_bytes = 64 << 10;
          const DType out = scheme == Scheme::none ? source : DType::f8_e4m3;
          add_op(program, scheme, source, DType::none, out, kRows, kCols, 0, false, matrix);
          require_equal(program, run_program(subject, program, half.base(), by_fetch_around(subject, program, file, zeros)),
                        oracle(program));
        });
      }
    }
  }
}

void check_shapes(const Subject& subject, const MappedFile& file, Score& score) {
  constexpr uint64_t kHalfBytes = 16 << 20;
  const OpenHalf half(subject, HalfKind::own, kHalfBytes);
  const Oracle oracle(subject, kHalfBytes);
  for (const Scheme scheme : test::kEveryScheme) {
    for (const DType source : {DType::bf16, DType::f32}) {
      for (const uint64_t cols : {37, 1024, 4099}) {
        for (const uint64_t skipped : {0, 8, 1021}) {
          score.law("a fetched tile is like one that was read", [&] {
            const uint64_t rows = 131;
            const uint64_t row_bytes = cols * dtype_bytes(source);
            const uint64_t stride = row_bytes + skipped * dtype_bytes(source);
            const DType out = scheme == Scheme::none ? source : DType::f8_e4m3;
            Program program;
            program.tile_bytes = 64 << 10;
            add_op(program, scheme, source, DType::none, out, rows, cols, 0, false,
                   matrix_of(value_classes()[0], source, rows, cols, 1));
            file.write(program.matrices[0], row_bytes, stride);
            require_equal(program, run_program(subject, program, half.base(), by_fetch(subject, program, file, stride)),
                          oracle(program));
          });
        }
      }
    }
  }
}

uint64_t pinned_bytes(const Subject& subject) {
  DeviceFacts facts = {};
  subject.check(subject.backend.describe(subject.device, &facts));
  return facts.pinned_bytes;
}

}  // namespace

void check_fetching(const Subject& subject, Score& score) {
  if (subject.backend.fetch == nullptr) return;
  const MappedFile file(kFileBytes);
  score.law("a mapped file can be pinned and is counted", [&] {
    const uint64_t before = pinned_bytes(subject);
    subject.check(subject.backend.pin(subject.device, file.at(), kFileBytes));
    require(pinned_bytes(subject) == before + kFileBytes, "pinned bytes do not count the file");
  });
  check_shapes(subject, file, score);
  check_zeros(subject, file, score);
  score.law("what is unpinned counts no more, and can be pinned again", [&] {
    const uint64_t before = pinned_bytes(subject);
    subject.backend.unpin(subject.device, file.at());
    require(pinned_bytes(subject) == before - kFileBytes, "pinned bytes still count the file");
    subject.check(subject.backend.pin(subject.device, file.at(), kFileBytes));
    subject.backend.unpin(subject.device, file.at());
  });
}

}  // namespace layercast::conformance
