#include "digest.h"

#include <algorithm>
#include <cstring>

namespace layercast {
namespace {

/// A range of bytes, cut where blocks begin: the end of one, whole ones, the beginning of one.
struct Cut {
  uint64_t head_block;
  uint64_t head_begin;  // in its block
  uint64_t head;
  uint64_t first_block;
  uint64_t blocks;
  uint64_t tail;
};

Cut cut(uint64_t offset, uint64_t bytes) {
  const uint64_t begin = offset % kDigestBlockBytes;
  const uint64_t head = begin == 0 ? 0 : std::min(bytes, kDigestBlockBytes - begin);
  const uint64_t blocks = (bytes - head) / kDigestBlockBytes;
  const uint64_t tail = bytes - head - blocks * kDigestBlockBytes;
  return {offset / kDigestBlockBytes, begin, head, (offset + head) / kDigestBlockBytes, blocks, tail};
}

/// `bytes` bytes that begin `begin` bytes into a block; the block's others count as zeros.
uint64_t part_of_block(const uint8_t* at, uint64_t block, uint64_t begin, uint64_t bytes, const VectorCode& code) {
  uint8_t whole[kDigestBlockBytes] = {};
  std::memcpy(whole + begin, at, bytes);
  return code.digest_blocks(whole, block, 1);
}

/// What of the cut is not whole blocks.
uint64_t parts_of_blocks(const uint8_t* at, uint64_t bytes, const Cut& cut, const VectorCode& code) {
  uint64_t sum = 0;
  if (cut.head > 0) sum += part_of_block(at, cut.head_block, cut.head_begin, cut.head, code);
  if (cut.tail > 0) sum += part_of_block(at + bytes - cut.tail, cut.first_block + cut.blocks, 0, cut.tail, code);
  return sum;
}

}  // namespace

uint64_t digest_bytes(const uint8_t* at, uint64_t offset, uint64_t bytes, const VectorCode& code) {
  const Cut range = cut(offset, bytes);
  return code.digest_blocks(at + range.head, range.first_block, range.blocks) + parts_of_blocks(at, bytes, range, code);
}

uint64_t copy_digested(const uint8_t* from, uint64_t bytes, uint8_t* base, uint64_t offset, const VectorCode& code) {
  const Cut range = cut(offset, bytes);
  uint8_t* to = base + offset;
  std::memcpy(to, from, range.head);
  std::memcpy(to + bytes - range.tail, from + bytes - range.tail, range.tail);
  return code.copy_blocks(from + range.head, range.first_block, range.blocks, to + range.head) +
         parts_of_blocks(from, bytes, range, code);
}

}  // namespace layercast
