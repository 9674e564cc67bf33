// Memory of the host for tensors that come in parts: as many addresses as all of them would take, and pages only where
// bytes were packed. It is a file without a name, so a program reads it as it reads a checkpoint file.
#pragma once

#include <cstdint>
#include <span>

#include "layer_program.h"
#include "thread_pool.h"

namespace layercast {

class Buffers {
 public:
  explicit Buffers(uint64_t bytes);
  ~Buffers();
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;

  uint64_t size_bytes() const { return size_bytes_; }
  /// As it is until the next fill or free.
  ProgramFile file() const;
  uint64_t held_bytes() const;

  /// Throws out_of_memory where this host does not have the pages that these ranges still lack.
  void check_room(std::span<const Span> spans) const;

  /// The bytes of a range, on pages that are there: writing to them needs no more memory. Throws out_of_memory.
  uint8_t* hold(const Span& span) const;

  /// Gives back the pages that lie within a range; what is left of it is zero. Throws invalid_argument.
  void free(std::span<const Span> spans) const;

 private:
  uint64_t missing_bytes(const Span& span) const;

  const uint64_t size_bytes_;
  int descriptor_ = -1;
  uint8_t* bytes_ = nullptr;
};

struct FillReport {
  uint64_t bytes_read;
  uint64_t read_ns;
};

/// Packs rows of files. What was filled before an error stays, and holds memory until it is freed.
FillReport fill_buffers(ThreadPool& pool, const Buffers& buffers, std::span<const ProgramFile> files,
                        std::span<const Copy> copies, const CancelToken& cancel);

}  // namespace layercast
