// The lane policy of CUDA: one group per thread, the numbers of a warp's 32 groups side by side.
//
// The counterpart of cpu/simd.h.
//
// An array of Real is a thread's own column of a matrix with 32 columns: element i + 1 stands 256
// bytes behind element i, so that the 32 threads of a warp read and write 256 bytes in a row. The
// algorithms of csrc/algorithms index such arrays like any other; in registers a Real is a double.
#pragma once

#include "cuda/problem.h"

#include <cuda_runtime.h>

namespace koopcore::cuda {

struct BatchReal {
  double value;
  char of_other_lanes[(kBatch - 1) * sizeof(double)]; // never touched: copies take `value` alone

  BatchReal() = default;
  KOOPCORE_HD BatchReal(double x) : value(x) {}
  KOOPCORE_HD BatchReal(const BatchReal &x) : value(x.value) {}
  KOOPCORE_HD BatchReal &operator=(const BatchReal &x) { return value = x.value, *this; }
  KOOPCORE_HD operator double() const { return value; }
  KOOPCORE_HD BatchReal &operator+=(double x) { return value += x, *this; }
  KOOPCORE_HD BatchReal &operator-=(double x) { return value -= x, *this; }
  KOOPCORE_HD BatchReal &operator*=(double x) { return value *= x, *this; }
};
static_assert(sizeof(BatchReal) == kBatch * sizeof(double), "a row holds a number of every lane");

struct BatchTag {};

struct BatchLanes : ScalarLanes<BatchTag> {
  using Scalar = ScalarLanes<BatchTag>;
  using Real = BatchReal;

  KOOPCORE_HD static Real broadcast(double x) { return x; }
  KOOPCORE_HD static Real select(Mask m, double a, double b) { return m ? a : b; }
  KOOPCORE_HD static Real sqrt(double x) { return Scalar::sqrt(x); }
  KOOPCORE_HD static Real max(double a, double b) { return Scalar::max(a, b); }
  KOOPCORE_HD static Real abs(double x) { return Scalar::abs(x); }
  KOOPCORE_HD static Real power_of_two_scale(double x) { return Scalar::power_of_two_scale(x); }
};

// The column of `lane` in a matrix that starts at `rows`.
KOOPCORE_HD inline BatchReal *lane_of(double *rows, int lane) {
  return reinterpret_cast<BatchReal *>(rows + lane);
}
KOOPCORE_HD inline const BatchReal *lane_of(const double *rows, int lane) {
  return reinterpret_cast<const BatchReal *>(rows + lane);
}

// The thread's column of its block's part of the work space: `rows` numbers.
__device__ inline BatchReal *thread_space(double *space, std::int64_t rows) {
  return lane_of(space + std::int64_t(blockIdx.x) * kBatch * rows, threadIdx.x);
}

} // namespace koopcore::cuda
