// Feature-side moments of one group per lane: C = Σ f fᵀ and E - C = Σ (f' - f) fᵀ over snapshots.
//
// Mirrors `feature_gram` in backends/reference.py. The rows y_t (differences, or reflected
// snapshots) come in blocks; 4 × 4 entries are summed in registers over a block.
#pragma once

#include "koopcore/lanes.h"

namespace koopcore {

// The coordinates z = H x = H (x - last) + H last, H = I - 2 v vᵀ / vᵀv, in which `last` stands in
// the first axis. v: (m).
template <class L> struct Reflection {
  typename L::Real *v;
  typename L::Real twice; // 2 / vᵀv, or 0 where last is zero and H is the identity
  typename L::Real norm;  // ±‖last‖, the sign that of last_1

  KOOPCORE_HD void set(const typename L::Real *last, int m) {
    using Real = typename L::Real;
    Real square = L::broadcast(0.0);
    for (int i = 0; i < m; ++i) {
      v[i] = last[i];
      square += last[i] * last[i];
    }
    const Real root = L::sqrt(square);
    norm = L::select(last[0] < 0.0, -root, root);
    v[0] += norm;
    square = L::broadcast(0.0);
    for (int i = 0; i < m; ++i)
      square += v[i] * v[i];
    const typename L::Mask some = square > 0.0;
    const Real one = L::broadcast(1.0), zero = L::broadcast(0.0);
    twice = L::select(some, 2.0 / L::select(some, square, one), zero);
  }

  // z from x - last, in place.
  KOOPCORE_HD void apply(typename L::Real *x, int m) const {
    typename L::Real along = L::broadcast(0.0);
    for (int i = 0; i < m; ++i)
      along += x[i] * v[i];
    along *= twice;
    for (int i = 0; i < m; ++i)
      x[i] -= along * v[i];
    x[0] -= norm;
  }
};

// sums (m × m) += Σ_{t<steps} a_t b_tᵀ; rows of a and b are m apart. Only the lower triangle if
// `lower`.
template <class L>
KOOPCORE_HD void add_outer(const typename L::Real *a, const typename L::Real *b, int steps, int m,
                           bool lower, typename L::Real *sums) {
  using Real = typename L::Real;
  for (int i = 0; i < m; i += 4)
    for (int j = 0; j < (lower ? (i + 4 < m ? i + 4 : m) : m); j += 4) {
      const int rows = m - i < 4 ? m - i : 4, columns = m - j < 4 ? m - j : 4;
      if (rows == 4 && columns == 4) {
        Real s[4][4];
        for (int r = 0; r < 4; ++r)
          for (int c = 0; c < 4; ++c)
            s[r][c] = sums[(i + r) * m + j + c];
        for (int t = 0; t < steps; ++t)
          for (int r = 0; r < 4; ++r)
            for (int c = 0; c < 4; ++c)
              s[r][c] += a[t * m + i + r] * b[t * m + j + c];
        for (int r = 0; r < 4; ++r)
          for (int c = 0; c < 4; ++c)
            sums[(i + r) * m + j + c] = s[r][c];
        continue;
      }
      for (int r = 0; r < rows; ++r)
        for (int c = 0; c < columns; ++c) {
          Real s = sums[(i + r) * m + j + c];
          for (int t = 0; t < steps; ++t)
            s += a[t * m + i + r] * b[t * m + j + c];
          sums[(i + r) * m + j + c] = s;
        }
    }
}

} // namespace koopcore
