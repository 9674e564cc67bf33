#include "control_page.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <thread>

#include "error.h"
#include "file.h"

namespace layercast {
namespace {

static_assert(std::endian::native == std::endian::little, "the page is little-endian");
static_assert(offsetof(ControlPage, generation) == 16 && offsetof(ControlPage, epoch) == 24);
static_assert(offsetof(ControlPage, arena_id) == 32 && offsetof(ControlPage, layout_digest) == 48);
static_assert(offsetof(ControlPage, reload) == 80 && offsetof(ControlPage, content) == 144);
static_assert(offsetof(ControlPage, weight_version) == 208 && offsetof(ControlPage, digest) == 336);
static_assert(offsetof(ControlPage, device_kind) == 344 && offsetof(ControlPage, device_uuid) == 352);
static_assert(offsetof(ControlPage, ipc_handle) == 368 && offsetof(ControlPage, data_offset) == 432);
static_assert(offsetof(ControlPage, data_bytes) == 440);

constexpr size_t kWords = sizeof(ControlPage) / 8;
constexpr size_t kGenerationWord = offsetof(ControlPage, generation) / 8;
constexpr Bytes<8> kMagic = {'L', 'A', 'Y', 'R', 'C', 'A', 'S', 'T'};
/// The writer needs microseconds; a reader that never sees two equal generations in this many tries reads a page that
/// is being hammered on purpose.
constexpr int kReadTries = 100'000;

using PageWords = std::array<uint64_t, kWords>;

std::atomic_ref<uint64_t> word(uint64_t* words, size_t index) { return std::atomic_ref<uint64_t>(words[index]); }

bool is_odd(uint64_t generation) { return generation % 2 == 1; }

bool is_ours(const ControlPage& page) { return page.magic == kMagic && page.abi_version == kControlPageAbi; }

ControlPage empty_page() {
  ControlPage page{};
  page.magic = kMagic;
  page.abi_version = kControlPageAbi;
  return page;
}

uint64_t* map_page(const File& file) {
  void* mapped = mmap(nullptr, kControlPageBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.descriptor(), 0);
  if (mapped == MAP_FAILED) throw_errno("mapping " + file.path(), errno, kControlPageBytes);
  return static_cast<uint64_t*>(mapped);
}

}  // namespace

Control::Control(const std::string& path) {
  const File file(path, O_RDWR | O_CREAT);
  ControlPage page{};
  Bytes<sizeof(ControlPage)> bytes{};
  file.read_at(0, bytes);
  std::memcpy(&page, bytes.data(), sizeof page);
  if (!is_ours(page) || file.size_bytes() != kControlPageBytes) {
    page = empty_page();
    Bytes<kControlPageBytes> whole{};
    std::memcpy(whole.data(), &page, sizeof page);
    if (ftruncate(file.descriptor(), kControlPageBytes) == -1) throw_errno("resizing " + path, errno);
    file.reserve(kControlPageBytes);  // a full disk is an error here, not a signal at the first store
    file.write_at(0, whole);
  }
  words_ = map_page(file);
  if (is_odd(page.generation)) torn_generation_ = page.generation;
}

Control::~Control() { close(); }

void Control::close() {
  if (words_ != nullptr) munmap(words_, kControlPageBytes);
  words_ = nullptr;
}

uint64_t* Control::words() const {
  if (words_ == nullptr) throw_invalid("the control page is closed");
  return words_;
}

ControlPage Control::read() const {
  uint64_t* from = words();
  PageWords copy;
  for (int tries = 0; tries < kReadTries; tries++) {
    const uint64_t before = word(from, kGenerationWord).load(std::memory_order_acquire);
    for (size_t i = 0; i < kWords; i++) copy[i] = word(from, i).load(std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_acquire);
    if (word(from, kGenerationWord).load(std::memory_order_relaxed) == before) break;
    std::this_thread::yield();
  }
  ControlPage page = std::bit_cast<ControlPage>(copy);
  if (is_odd(page.generation)) {
    page.state = page.generation == torn_generation_ ? ControlState::torn : ControlState::swapping;
  }
  return page;
}

void Control::begin_swap(uint64_t epoch, const std::string& reload) {
  ControlPage page = read();
  if (!is_odd(page.generation)) page.generation++;
  torn_generation_ = 0;
  word(words(), kGenerationWord).store(page.generation, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_release);
  page.state = ControlState::swapping;
  page.epoch = epoch;
  page.reload = text_field<64>(reload);
  store(page);
  // What follows, the exchange's stores, must not be seen before the odd generation.
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

void Control::end_swap(const ControlUpdate& update) {
  ControlPage page = read();
  if (page.state != ControlState::swapping) throw_invalid("the end of a swap that has not begun");
  page.state = ControlState::live;
  page.epoch = update.epoch;
  page.arena_id = update.arena_id;
  page.layout_digest = update.layout_digest;
  page.reload = text_field<64>(update.reload);
  page.content = text_field<64>(update.content);
  page.weight_version = text_field<128>(update.weight_version);
  page.digest = update.digest;
  page.device_kind = update.device_kind;
  page.device_uuid = update.device_uuid;
  page.ipc_handle = update.ipc_handle;
  page.data_offset = update.data_offset;
  page.data_bytes = update.data_bytes;
  store(page);
  word(words(), kGenerationWord).store(page.generation + 1, std::memory_order_release);
}

/// Stores all words but the generation's.
void Control::store(const ControlPage& page) {
  const PageWords from = std::bit_cast<PageWords>(page);
  for (size_t i = 0; i < kWords; i++) {
    if (i != kGenerationWord) word(words(), i).store(from[i], std::memory_order_relaxed);
  }
}

size_t fitting_bytes(const std::string& text, size_t size) {
  if (text.size() <= size) return text.size();
  size_t end = size;
  while (end > 0 && (static_cast<uint8_t>(text[end]) & 0xC0) == 0x80) end--;
  return end;
}

}  // namespace layercast
