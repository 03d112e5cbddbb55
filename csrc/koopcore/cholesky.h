// Cholesky factorization in time order, as A = L D Lᵀ with unit lower L, one group per lane.
#pragma once

#include "koopcore/lanes.h"

namespace koopcore {

// Overwrites the equilibrated packed matrix a (rows × rows) by L below the diagonal and D on it.
// Returns the columns done before a pivot of the first `columns` broke down, as a number per lane;
// a lane that broke down holds finite nonsense. work: `rows` numbers.
//
// Rows past `columns` are right-hand sides: their pivot is a residual and may be zero. L D Lᵀ
// rather than L Lᵀ because each column then waits for one division and for no square root.
// Left-looking by columns, four rows at a time, so that each entry of row k is loaded once for four
// chains.
template <class L>
KOOPCORE_HD typename L::Real cholesky(typename L::Real *a, int rows, int columns,
                                      typename L::Real *work) {
  using Real = typename L::Real;
  const double tolerance = breakdown_tolerance(columns);
  const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
  typename L::Mask alive = L::everywhere();
  Real rank = zero;
  for (int k = 0; k < rows; ++k) {
    Real *top = a + packed_index(k, 0);
    const Real diagonal = top[k];
    for (int j = 0; j < k; ++j)
      work[j] = top[j] * a[packed_index(j, j)];
    Real pivot = diagonal;
    for (int j = 0; j < k; ++j)
      pivot -= top[j] * work[j];
    Real inverse = zero;
    if (k < columns) {
      alive = L::both(alive, pivot > tolerance * diagonal);
      pivot = L::select(alive, pivot, one);
      rank = L::select(alive, L::broadcast(k + 1.0), rank);
      // A lane that broke down may hold infinities; zeros there keep the rest finite and fast.
      inverse = L::select(alive, 1.0 / pivot, zero);
    } else {
      pivot = L::max(pivot, zero);
    }
    top[k] = pivot;
    int i = k + 1;
    for (; i + 4 <= rows; i += 4) {
      Real *r0 = a + packed_index(i, 0), *r1 = r0 + i + 1, *r2 = r1 + i + 2, *r3 = r2 + i + 3;
      Real s0 = r0[k], s1 = r1[k], s2 = r2[k], s3 = r3[k];
      for (int j = 0; j < k; ++j) {
        const Real t = work[j];
        s0 -= r0[j] * t;
        s1 -= r1[j] * t;
        s2 -= r2[j] * t;
        s3 -= r3[j] * t;
      }
      r0[k] = L::select(alive, s0 * inverse, zero);
      r1[k] = L::select(alive, s1 * inverse, zero);
      r2[k] = L::select(alive, s2 * inverse, zero);
      r3[k] = L::select(alive, s3 * inverse, zero);
    }
    for (; i < rows; ++i) {
      Real *r = a + packed_index(i, 0);
      Real s = r[k];
      for (int j = 0; j < k; ++j)
        s -= r[j] * work[j];
      r[k] = L::select(alive, s * inverse, zero);
    }
  }
  return rank;
}

} // namespace koopcore
