// The control page: 4096 bytes beside an arena that say what its live half holds. Any process may map the file and
// read; its worker is the only writer. All integers are little-endian, text is UTF-8 filled up with zero bytes.
//
//   offset  bytes
//        0      8  magic "LAYRCAST"
//        8      4  ABI version: 1
//       12      4  state: 0 empty, 1 live, 2 swapping, 3 torn
//       16      8  generation, the sequence lock: odd while the live bytes or this page change
//       24      8  epoch
//       32     16  arena id
//       48     32  layout digest
//       80     64  reload: the one that swapped last
//      144     64  content: the reload whose bytes these are
//      208    128  weight version
//      336      8  digest of the live bytes
//      344      4  device kind: 0 cpu, 1 cuda
//      348      4  zero
//      352     16  device UUID; zeros on the CPU
//      368     64  CUDA IPC handle of the memory with the tensor bytes; zeros on the CPU
//      432      8  data offset: of the tensor bytes in the live file; on CUDA, where the header file ends
//      440      8  data bytes
//      448   3648  zeros
//
// A reader loads the generation (acquire), starts again while it is odd, copies what it wants, and starts again if the
// generation has changed meanwhile. While it is odd, only generation, state and epoch can be relied on.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>

namespace layercast {

inline constexpr uint64_t kControlPageBytes = 4096;
inline constexpr uint32_t kControlPageAbi = 1;

enum class ControlState : uint32_t { empty = 0, live = 1, swapping = 2, torn = 3 };
enum class DeviceKind : uint32_t { cpu = 0, cuda = 1 };

template <size_t kSize>
using Bytes = std::array<uint8_t, kSize>;

/// The page as it lies in memory, up to its last field; a multiple of 8 bytes.
struct ControlPage {
  Bytes<8> magic;
  uint32_t abi_version;
  ControlState state;
  uint64_t generation;
  uint64_t epoch;
  Bytes<16> arena_id;
  Bytes<32> layout_digest;
  Bytes<64> reload;
  Bytes<64> content;
  Bytes<128> weight_version;
  uint64_t digest;
  DeviceKind device_kind;
  uint32_t zero;
  Bytes<16> device_uuid;
  Bytes<64> ipc_handle;
  uint64_t data_offset;
  uint64_t data_bytes;
};
static_assert(sizeof(ControlPage) == 448);

/// What the end of a swap records.
struct ControlUpdate {
  uint64_t epoch;
  Bytes<16> arena_id;
  Bytes<32> layout_digest;
  std::string reload;
  std::string content;
  std::string weight_version;
  uint64_t digest;
  DeviceKind device_kind;
  Bytes<16> device_uuid;
  Bytes<64> ipc_handle;
  uint64_t data_offset;
  uint64_t data_bytes;
};

/// A mapped control page; its owner's view of it.
class Control {
 public:
  /// Maps the file; makes an empty page where there is none, or one of another magic, size or ABI.
  explicit Control(const std::string& path);
  ~Control();
  Control(const Control&) = delete;
  Control& operator=(const Control&) = delete;

  /// All fields of one moment. A generation that was odd when this view was opened, and still is, reads as torn:
  /// whoever was swapping then is gone.
  ControlPage read() const;

  /// Makes the generation odd before any live byte changes. A torn page stays odd: its swap begins again.
  void begin_swap(uint64_t epoch, const std::string& reload);
  /// Writes all fields, then makes the generation even. Throws invalid_argument without begin_swap.
  void end_swap(const ControlUpdate& update);

  /// Unmaps; any use afterwards throws invalid_argument.
  void close();

 private:
  uint64_t* words() const;
  void store(const ControlPage& page);

  uint64_t* words_ = nullptr;
  uint64_t torn_generation_ = 0;  // 0: none
};

/// As many of the text's bytes as fit into `size`, cut at a character's end.
size_t fitting_bytes(const std::string& text, size_t size);

template <size_t kSize>
Bytes<kSize> text_field(const std::string& text) {
  Bytes<kSize> field{};
  std::copy_n(text.begin(), fitting_bytes(text, kSize), field.begin());
  return field;
}

template <size_t kSize>
std::string text_of(const Bytes<kSize>& field) {
  return std::string(field.begin(), std::find(field.begin(), field.end(), uint8_t{0}));
}

}  // namespace layercast
