// From memory to shared memory without a register in between, many at a time: cp.async.
#pragma once

#include "algorithms/lanes.h"

#include <cuda_runtime.h>

#include <cstring>

namespace koopcore::cuda {

// Bytes = 4, 8 or 16, both sides aligned to that; `await_fetches` waits for all that the thread has
// asked for.
template <int Bytes> __device__ inline void fetch_bytes(void *to, const void *from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const unsigned int at = static_cast<unsigned int>(__cvta_generic_to_shared(to));
  if constexpr (Bytes == 16) // past the first cache, which has no use for it
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(at), "l"(from), "n"(Bytes)
                 : "memory");
#else
  memcpy(to, from, Bytes);
#endif
}
template <class T> __device__ inline void fetch_number(T *to, const T *from) {
  fetch_bytes<sizeof(T)>(to, from);
}

__device__ inline void await_fetches() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

} // namespace koopcore::cuda
