// Swaps bytes of two halves, of which one may be the host's pinned memory.
#include "kernels.h"

namespace layercast {
namespace {

constexpr uint32_t kThreads = 256;
constexpr uint32_t kInFlight = 4;  // pieces that a thread has read of each half before it writes the first

template <class T>
__device__ __forceinline__ void swap_at(T* a, T* b, uint64_t i) {
  const T kept = a[i];
  a[i] = b[i];
  b[i] = kept;
}

template <class T>
__global__ void __launch_bounds__(kThreads) exchange_kernel(T* __restrict__ a, T* __restrict__ b, uint64_t count) {
  const uint64_t step = static_cast<uint64_t>(gridDim.x) * kThreads;
  uint64_t i = blockIdx.x * static_cast<uint64_t>(kThreads) + threadIdx.x;
  for (; i + (kInFlight - 1) * step < count; i += kInFlight * step) {
    T of_a[kInFlight], of_b[kInFlight];
#pragma unroll
    for (uint32_t k = 0; k < kInFlight; k++) {
      of_a[k] = a[i + k * step];
      of_b[k] = b[i + k * step];
    }
#pragma unroll
    for (uint32_t k = 0; k < kInFlight; k++) {
      a[i + k * step] = of_b[k];
      b[i + k * step] = of_a[k];
    }
  }
  for (; i < count; i += step) swap_at(a, b, i);
}

template <class T>
void launch(uint8_t* a, uint8_t* b, uint64_t bytes, const Queue& queue) {
  const uint64_t count = bytes / sizeof(T);
  if (count == 0) return;
  const uint64_t blocks = ceil_div(count, kThreads * kInFlight);
  const uint64_t enough = queue.multiprocessors * 8ull;
  const auto grid = static_cast<uint32_t>(blocks < enough ? blocks : enough);
  exchange_kernel<<<grid, kThreads, 0, queue.stream>>>(reinterpret_cast<T*>(a), reinterpret_cast<T*>(b), count);
}

}  // namespace

void launch_exchange(uint8_t* a, uint8_t* b, uint64_t bytes, const Queue& queue) {
  const uint64_t begin = reinterpret_cast<uintptr_t>(a) % sizeof(uint4);
  if (reinterpret_cast<uintptr_t>(b) % sizeof(uint4) != begin) return launch<uint8_t>(a, b, bytes, queue);
  uint64_t head = (sizeof(uint4) - begin) % sizeof(uint4);
  if (head > bytes) head = bytes;
  const uint64_t body = (bytes - head) / sizeof(uint4) * sizeof(uint4);
  launch<uint8_t>(a, b, head, queue);
  launch<uint4>(a + head, b + head, body, queue);
  launch<uint8_t>(a + head + body, b + head + body, bytes - head - body, queue);
}

}  // namespace layercast
