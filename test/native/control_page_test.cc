// The control page: its bytes, its states, and readers beside a writer.
#include "control_page.h"

#include <atomic>
#include <thread>

#include "check.h"
#include "support.h"

using namespace layercast;
using namespace layercast::test;

namespace {

/// An update of which every field says the same number.
ControlUpdate update_of(uint64_t number) {
  ControlUpdate update = {};
  update.epoch = number;
  update.arena_id.fill(static_cast<uint8_t>(number));
  update.layout_digest.fill(static_cast<uint8_t>(number));
  update.reload = "reload-" + std::to_string(number);
  update.content = "content-" + std::to_string(number);
  update.weight_version = std::string(100, static_cast<char>('a' + number % 26));
  update.digest = number;
  update.device_kind = number % 2 == 0 ? DeviceKind::cpu : DeviceKind::cuda;
  update.device_uuid.fill(static_cast<uint8_t>(number + 1));
  update.ipc_handle.fill(static_cast<uint8_t>(number + 2));
  update.data_offset = number;
  update.data_bytes = number;
  return update;
}

bool says(const ControlPage& page, uint64_t number) {
  const ControlUpdate update = update_of(number);
  return page.epoch == number && page.arena_id == update.arena_id && page.layout_digest == update.layout_digest &&
         text_of(page.reload) == update.reload && text_of(page.content) == update.content &&
         text_of(page.weight_version) == update.weight_version && page.digest == number &&
         page.device_kind == update.device_kind && page.device_uuid == update.device_uuid &&
         page.ipc_handle == update.ipc_handle && page.data_offset == number && page.data_bytes == number;
}

}  // namespace

LAW("a page that is not there, or of another magic, ABI or size, becomes an empty one") {
  TemporaryDirectory directory;
  const std::string path = directory / "control";
  const auto check_empty = [&] {
    const ControlPage page = Control(path).read();
    CHECK(page.state == ControlState::empty);
    CHECK_EQUAL(page.generation, 0u);
    CHECK_EQUAL(read_file(path).size(), 4096u);
  };
  check_empty();
  Control(path).begin_swap(1, "r");
  ByteVector bytes = read_file(path);
  for (const size_t spoiled : {0u, 8u}) {
    ByteVector other = bytes;
    other[spoiled] ^= 1;
    write_file(path, other);
    check_empty();
  }
  bytes.resize(448);
  write_file(path, bytes);
  check_empty();
}

LAW("every field lies where the layout says") {
  TemporaryDirectory directory;
  const std::string path = directory / "control";
  Control control(path);
  control.begin_swap(7, "first");
  ControlUpdate update = update_of(0x0102030405060708);
  update.reload = "reload";
  update.device_kind = DeviceKind::cuda;
  control.end_swap(update);
  const ByteVector bytes = read_file(path);
  CHECK_EQUAL(std::string(bytes.begin(), bytes.begin() + 8), "LAYRCAST");
  CHECK_EQUAL(value_at<uint32_t>(bytes, 8), 1u);
  CHECK_EQUAL(value_at<uint32_t>(bytes, 12), 1u);
  CHECK_EQUAL(value_at<uint64_t>(bytes, 16), 2u);
  CHECK_EQUAL(value_at<uint64_t>(bytes, 24), 0x0102030405060708u);
  CHECK_EQUAL(+bytes[24], 0x08);
  CHECK_EQUAL(+bytes[32], 0x08);
  CHECK_EQUAL(+bytes[79], 0x08);
  CHECK_EQUAL(std::string(bytes.begin() + 80, bytes.begin() + 87), std::string("reload\0", 7));
  CHECK_EQUAL(std::string(bytes.begin() + 144, bytes.begin() + 152), "content-");
  CHECK_EQUAL(+bytes[208], +bytes[307]);
  CHECK_EQUAL(+bytes[308], 0);
  CHECK_EQUAL(value_at<uint64_t>(bytes, 336), 0x0102030405060708u);
  CHECK_EQUAL(value_at<uint32_t>(bytes, 344), 1u);
  CHECK_EQUAL(value_at<uint32_t>(bytes, 348), 0u);
  CHECK_EQUAL(+bytes[352], 0x09);
  CHECK_EQUAL(+bytes[367], 0x09);
  CHECK_EQUAL(+bytes[368], 0x0A);
  CHECK_EQUAL(+bytes[431], 0x0A);
  CHECK_EQUAL(value_at<uint64_t>(bytes, 432), 0x0102030405060708u);
  CHECK_EQUAL(value_at<uint64_t>(bytes, 440), 0x0102030405060708u);
  for (size_t i = 448; i < 4096; i++) CHECK_EQUAL(+bytes[i], 0);
}

LAW("a swap makes the generation odd, its end even, and an end without a beginning is refused") {
  TemporaryDirectory directory;
  Control control(directory / "control");
  CHECK_EQUAL(ERROR_OF(control.end_swap(update_of(1))).code_name(), "NATIVE_INVALID_ARGUMENT");
  control.begin_swap(5, "five");
  ControlPage page = control.read();
  CHECK(page.state == ControlState::swapping);
  CHECK_EQUAL(page.generation, 1u);
  CHECK_EQUAL(page.epoch, 5u);
  CHECK_EQUAL(text_of(page.reload), "five");
  control.end_swap(update_of(5));
  page = control.read();
  CHECK(page.state == ControlState::live);
  CHECK_EQUAL(page.generation, 2u);
  CHECK(says(page, 5));
  control.close();
  CHECK_EQUAL(ERROR_OF(control.read()).code_name(), "NATIVE_INVALID_ARGUMENT");
}

LAW("a page left in the middle of a swap is torn, stays odd through the next swap, and is healed by its end") {
  TemporaryDirectory directory;
  const std::string path = directory / "control";
  Control(path).begin_swap(3, "dies");
  Control control(path);
  CHECK(control.read().state == ControlState::torn);
  CHECK_EQUAL(control.read().epoch, 3u);
  CHECK_EQUAL(ERROR_OF(control.end_swap(update_of(1))).code_name(), "NATIVE_INVALID_ARGUMENT");
  control.begin_swap(4, "heals");
  CHECK_EQUAL(control.read().generation, 1u);
  CHECK(control.read().state == ControlState::swapping);
  control.end_swap(update_of(4));
  CHECK_EQUAL(control.read().generation, 2u);
  CHECK(control.read().state == ControlState::live);
}

LAW("text that is too long is cut at a character's end") {
  TemporaryDirectory directory;
  Control control(directory / "control");
  control.begin_swap(1, "r");
  ControlUpdate update = update_of(1);
  update.reload = std::string(63, 'x') + "\xC3\xA9";  // the last character would need a 65th byte
  update.content = std::string(64, 'y');
  control.end_swap(update);
  CHECK_EQUAL(text_of(control.read().reload), std::string(63, 'x'));
  CHECK_EQUAL(text_of(control.read().content), std::string(64, 'y'));
}

LAW("a reader beside the writer never sees fields of two swaps under one even generation") {
  TemporaryDirectory directory;
  const std::string path = directory / "control";
  Control writer(path);
  writer.begin_swap(1, "r");
  writer.end_swap(update_of(1));
  std::atomic<bool> stop = false;
  uint64_t even_reads = 0, mixed = 0;
  std::thread reader([&] {
    const Control control(path);
    while (!stop) {
      const ControlPage page = control.read();
      if (page.generation % 2 == 1) continue;
      even_reads++;
      if (!says(page, page.generation / 2)) mixed++;
    }
  });
  for (uint64_t number = 2; number < 30'000; number++) {
    writer.begin_swap(number, "r");
    writer.end_swap(update_of(number));
    if (number % 100 == 0) std::this_thread::yield();
  }
  stop = true;
  reader.join();
  CHECK(even_reads > 0);
  CHECK_EQUAL(mixed, 0u);
}
