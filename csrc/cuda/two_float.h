// Numbers of twice the digits of a float, where fp64 is slow.
#pragma once

#include <cuda_runtime.h>

namespace koopcore::cuda {

// hi + lo is a sum of products of floats: every product and every addition keeps what it rounds off
// (TwoProd and TwoSum; Ogita, Rump & Oishi 2005, Dot2). What `lo` rounds off in turn, u² of the sum
// so far, is all that is lost, unless a product is so small that what it rounds off is no float.
struct TwoFloat {
  float hi, lo;

  // x, but for u² of it, if it is in the range of floats.
  __device__ static TwoFloat of(double x) {
    const float hi = float(x);
    return {hi, float(x - double(hi))};
  }
  // a - b exactly.
  __device__ static TwoFloat difference(float a, float b) {
    const float d = __fsub_rn(a, b), t = __fsub_rn(a, d);
    return {d, __fsub_rn(__fsub_rn(a, __fadd_rn(d, t)), __fsub_rn(b, t))};
  }

  __device__ void add_product(float a, float b) {
    const float p = __fmul_rn(a, b), e = __fmaf_rn(a, b, -p);
    const float s = __fadd_rn(hi, p), t = __fsub_rn(s, hi);
    const float rounded = __fadd_rn(__fsub_rn(hi, __fsub_rn(s, t)), __fsub_rn(p, t));
    hi = s;
    lo = __fadd_rn(lo, __fadd_rn(rounded, e));
  }
  __device__ void add_product(const TwoFloat &a, const TwoFloat &b) {
    add_product(a.hi, b.hi);
    lo = __fmaf_rn(a.hi, b.lo, __fmaf_rn(a.lo, b.hi, lo));
  }
  // hi is then the float next to the sum.
  __device__ void add(const TwoFloat &x) {
    const float s = __fadd_rn(hi, x.hi), t = __fsub_rn(s, hi);
    const float rounded = __fadd_rn(__fsub_rn(hi, __fsub_rn(s, t)), __fsub_rn(x.hi, t));
    const float low = __fadd_rn(lo, __fadd_rn(x.lo, rounded));
    hi = __fadd_rn(s, low);
    lo = __fsub_rn(low, __fsub_rn(hi, s));
  }
};

} // namespace koopcore::cuda
