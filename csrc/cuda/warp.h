// What a warp does together: shuffles of numbers, and the fp64 tensor-core product of 8 × 4 × 8.
#pragma once

#include "cuda/code.h"

#include <cuda_runtime.h>

// Dynamic shared memory of the block, aligned to 16 bytes.
#ifndef KOOPCORE_SHARED
#define KOOPCORE_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace koopcore::cuda {

constexpr unsigned int kAllLanes = 0xffffffffu;

__device__ inline double sum_lanes(double x) {
  for (int apart = 16; apart > 0; apart /= 2)
    x += __shfl_xor_sync(kAllLanes, x, apart);
  return x;
}
__device__ inline double max_lanes(double x) {
  for (int apart = 16; apart > 0; apart /= 2)
    x = ::fmax(x, __shfl_xor_sync(kAllLanes, x, apart));
  return x;
}

// c (8 × 8) += a (8 × 4) b (4 × 8). Lane l holds a[l/4][l%4], b[l%4][l/4] and c[l/4][2(l%4) + 0,
// 1]. With the same register as both operands, c[r][s] += Σ_q a[r][q] a[s][q]: a Gram matrix.
__device__ inline void multiply_add_8x4x8(double a, double b, double &c0, double &c1) {
#ifdef KOOPCORE_EMULATED
  emulation::multiply_add_8x4x8(a, b, c0, c1);
#elif defined(__CUDA_ARCH__) && !KOOPCORE_TWO_FLOAT
  asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%0,%1};"
      : "+d"(c0), "+d"(c1)
      : "d"(a), "d"(b));
#else
  // Without the fp64 tensor core: the same sums by shuffles, for double snapshots on other parts.
  const int lane = threadIdx.x & 31;
  for (int q = 0; q < 4; ++q) {
    const double x = __shfl_sync(kAllLanes, a, (lane & ~3) + q);
    c0 += x * __shfl_sync(kAllLanes, b, 8 * (lane & 3) + q);
    c1 += x * __shfl_sync(kAllLanes, b, 8 * (lane & 3) + 4 + q);
  }
#endif
}

} // namespace koopcore::cuda
