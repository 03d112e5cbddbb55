// The lane policy: arithmetic on one group per lane, and its scalar form (one lane, also CUDA's).
//
// The small-matrix algorithms of this directory are templates on a policy L with
//   L::Real, L::Mask   one number, one truth value per lane; Real has + - * / and < > with scalars
//   L::broadcast, select, equal, both, either, opposite, any, sqrt, inverse_sqrt, inverse, max,
//   abs, power_of_two_scale
// The SIMD form is in cpu/simd.h. Nothing here allocates, throws or uses a container. Functions are
// templates on L or static, so that files compiled for other instruction sets never share them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define KOOPCORE_HD __host__ __device__
#else
#define KOOPCORE_HD
#endif

// Before large functions that many places call: a file for CUDA that has many of these places says
// __noinline__ first, and its compiler takes about a third of the time.
#ifndef KOOPCORE_CALLED
#define KOOPCORE_CALLED
#endif

#define KOOPCORE_INLINE inline __attribute__((always_inline))

// Before loops of at most eight turns over arrays that belong in registers.
#if defined(__CUDACC__) || defined(__clang__)
#define KOOPCORE_UNROLL _Pragma("unroll")
#else
#define KOOPCORE_UNROLL _Pragma("GCC unroll 8")
#endif

namespace koopcore {

// A rollout whose weights grow past this is divergent (WEIGHT_LIMIT in backends/protocol.py).
constexpr double kWeightLimit = 1e30;
// Beyond this horizon a rollout squares its operator instead of stepping.
constexpr std::int64_t kDirectSteps = 1024;

// The tolerances of backends/protocol.py, u = 2^-53: a pivot in time order below 16 n·u of its
// diagonal is noise; diagonal pivoting stops below 2 u·max(n, 16) of the largest, and singular
// values of F end below the same share of its largest.
KOOPCORE_HD static constexpr double breakdown_tolerance(int n) { return 16.0 * n * 0x1p-53; }
KOOPCORE_HD static constexpr double rank_tolerance(int n) {
  return 2.0 * (n > 16 ? n : 16) * 0x1p-53;
}

// Of the squares of scaled parameters in a second pass: what is below this share of the largest is
// not resolved (RESOLVED in backends/protocol.py).
constexpr double kResolved = 0x1p-66;

// Squares that float64 resolves to the last digit that counts, and whose sums do not overflow.
// Groups beyond them have no companion fit, nor do those with a distance of a column from the
// columns before it, squared, below this share of N ‖F‖²: it may be near the cut-off of F.
constexpr double kLeastSquare = 0x1p-800, kGreatestSquare = 0x1p1000;
KOOPCORE_HD static constexpr double near_cut_off(int n) {
  return n * (256.0 * rank_tolerance(n)) * (256.0 * rank_tolerance(n));
}
// Of a scaled Gram matrix whose Cholesky factor in time order is to be trusted (LEAST_EIGENVALUE).
constexpr double kLeastEigenvalue = 64.0 * 0x1p-53;

KOOPCORE_HD static constexpr int packed_size(int n) { return n * (n + 1) / 2; }
KOOPCORE_HD static constexpr int packed_index(int i, int j) { return i * (i + 1) / 2 + j; }

// `Tag` keeps the instantiations of differently compiled files apart.
template <class Tag> struct ScalarLanes {
  static constexpr int width = 1;
  using Real = double;
  using Mask = bool;

  KOOPCORE_HD static Real broadcast(double x) { return x; }
  KOOPCORE_HD static Mask everywhere() { return true; }
  KOOPCORE_HD static Real select(Mask m, Real a, Real b) { return m ? a : b; }
  KOOPCORE_HD static Mask equal(Real a, double b) { return a == b; }
  KOOPCORE_HD static Mask both(Mask a, Mask b) { return a && b; }
  KOOPCORE_HD static Mask either(Mask a, Mask b) { return a || b; }
  KOOPCORE_HD static Mask opposite(Mask m) { return !m; }
  KOOPCORE_HD static bool any(Mask m) { return m; }
  KOOPCORE_HD static Real sqrt(Real x) { return ::sqrt(x); }
  KOOPCORE_HD static Real inverse_sqrt(Real x) { return 1.0 / ::sqrt(x); }
  KOOPCORE_HD static Real inverse(Real x) { return 1.0 / x; }
  KOOPCORE_HD static Real max(Real a, Real b) { return a > b ? a : b; }
  KOOPCORE_HD static Real abs(Real x) { return ::fabs(x); }

  // s with s²·x in [1/2, 2), exact to apply; 1 where x is not positive.
  KOOPCORE_HD static Real power_of_two_scale(Real x) {
    if (!(x > 0.0))
      return 1.0;
    std::uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (1535u - ((((bits >> 52) & 0x7ff) + 2) >> 1)) << 52;
    memcpy(&x, &bits, sizeof bits);
    return x;
  }
};

// The loops of an algorithm whose turns are independent of each other. A warp that has one group
// shares them out among its lanes (cuda/warp_lanes.h); what writes to an array in an algorithm that
// it runs stands in one.
template <class L> struct Loops {
  template <class Turn> KOOPCORE_HD static KOOPCORE_INLINE void each(int count, Turn &&turn) {
    for (int i = 0; i < count; ++i)
      turn(i);
  }
  template <class Term>
  KOOPCORE_HD static KOOPCORE_INLINE typename L::Real sum(int count, Term &&term) {
    typename L::Real all = L::broadcast(0.0);
    for (int i = 0; i < count; ++i)
      all += term(i);
    return all;
  }
};

// turn(i) for every i < count, in any order.
template <class L, class Turn> KOOPCORE_HD KOOPCORE_INLINE void each(int count, Turn &&turn) {
  Loops<L>::each(count, turn);
}
// Σ term(i) over i < count.
template <class L, class Term>
KOOPCORE_HD KOOPCORE_INLINE typename L::Real sum_of(int count, Term &&term) {
  return Loops<L>::sum(count, term);
}

} // namespace koopcore
