// Where predictions go: into the rows of an array, or straight into the parameters themselves.
#pragma once

#include "cuda/numbers.h"
#include "cuda/rows.h"

namespace koopcore::cuda {

// The tensor that has parameter `column`; -1 where none has.
__device__ inline std::int64_t tensor_of(const Tensors &tensors, std::int64_t column) {
  std::int64_t low = 0, high = tensors.count;
  while (low < high) {
    const std::int64_t middle = (low + high) / 2;
    if (tensors.start[middle] <= column)
      low = middle + 1;
    else
      high = middle;
  }
  --low;
  return low >= 0 && column < tensors.start[low] + tensors.length[low] ? low : -1;
}

// value: those of `at`, for row `row`; doubles or TwoFloats.
template <class Value>
__device__ void store_four(const Output &out, const Tensors &parameters, std::int64_t row,
                           const Four &at, const Value (&value)[4]) {
  if (parameters.count > 0) {
    KOOPCORE_UNROLL
    for (int s = 0; s < 4; ++s) {
      const std::int64_t column = at.column + s * at.stride;
      const std::int64_t t = at.has(s) ? tensor_of(parameters, column) : -1;
      if (t < 0)
        continue;
      const Kind kind = Kind(parameters.kind[t]);
      write_finite(parameters.data[t] + (column - parameters.start[t]) * bytes_of(kind), kind,
                   value[s]);
    }
    return;
  }
  char *p = out.data + row * out.row + at.column * out.step;
  if (at.side_by_side() && out.kind == kFloat32 && out.step == 4 &&
      reinterpret_cast<std::uintptr_t>(p) % 16 == 0) {
    *reinterpret_cast<float4 *>(p) = {to_float32(value[0]), to_float32(value[1]),
                                      to_float32(value[2]), to_float32(value[3])};
    return;
  }
  KOOPCORE_UNROLL
  for (int s = 0; s < 4; ++s)
    if (at.has(s))
      write_finite(p + s * at.stride * out.step, out.kind, value[s]);
}

} // namespace koopcore::cuda
