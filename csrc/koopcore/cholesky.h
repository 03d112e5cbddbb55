// Cholesky factorization in time order of a packed lower matrix, one group per lane.
#pragma once

#include "koopcore/lanes.h"

namespace koopcore {

// Overwrites the equilibrated packed matrix a (rows × rows) by L, the pivots' square roots on its
// diagonal and their reciprocals in `inverse`. Returns the columns done before a pivot of the first
// `columns` broke down, as a number per lane; a lane that broke down holds finite nonsense.
//
// Rows past `columns` are right-hand sides: their pivot is a residual and may be zero. Left-looking
// by columns, four rows at a time, so that each entry of row k is loaded once for four chains.
template <class L>
KOOPCORE_HD typename L::Real cholesky(typename L::Real *a, int rows, int columns,
                                      typename L::Real *inverse) {
  using Real = typename L::Real;
  const double tolerance = breakdown_tolerance(columns);
  typename L::Mask alive = L::everywhere();
  Real rank = L::broadcast(0.0);
  for (int k = 0; k < rows; ++k) {
    Real *top = a + packed_index(k, 0);
    const Real diagonal = top[k];
    int i = k;
    for (; i + 4 <= rows; i += 4) {
      Real *r0 = a + packed_index(i, 0), *r1 = r0 + i + 1, *r2 = r1 + i + 2, *r3 = r2 + i + 3;
      Real s0 = r0[k], s1 = r1[k], s2 = r2[k], s3 = r3[k];
      for (int j = 0; j < k; ++j) {
        const Real t = top[j];
        s0 -= r0[j] * t;
        s1 -= r1[j] * t;
        s2 -= r2[j] * t;
        s3 -= r3[j] * t;
      }
      r0[k] = s0;
      r1[k] = s1;
      r2[k] = s2;
      r3[k] = s3;
    }
    for (; i < rows; ++i) {
      Real *r = a + packed_index(i, 0);
      Real s = r[k];
      for (int j = 0; j < k; ++j)
        s -= r[j] * top[j];
      r[k] = s;
    }
    Real pivot = top[k];
    if (k < columns) {
      alive = L::both(alive, pivot > tolerance * diagonal);
      pivot = L::select(alive, pivot, L::broadcast(1.0));
      rank = L::select(alive, L::broadcast(k + 1.0), rank);
    } else {
      pivot = L::max(pivot, L::broadcast(0.0));
    }
    const Real root = L::sqrt(pivot);
    top[k] = root;
    inverse[k] = 1.0 / root;
    for (int r = k + 1; r < rows; ++r) {
      Real &entry = a[packed_index(r, k)];
      // A lane that broke down may hold infinities; zeros there keep the rest finite and fast.
      entry =
          k < columns ? L::select(alive, entry * inverse[k], L::broadcast(0.0)) : L::broadcast(0.0);
    }
  }
  return rank;
}

} // namespace koopcore
