// Feature-side moments of one group per lane: C = Σ f fᵀ and E - C = Σ (f' - f) fᵀ over snapshots.
//
// Mirrors `feature_gram` in backends/reference.py. The rows y_t (differences, or reflected
// snapshots) come in blocks; 4 × 4 entries are summed in registers over a block.
#pragma once

#include "algorithms/lanes.h"

namespace koopcore {

// The coordinates z = H x, H = I - 2 v vᵀ / vᵀv, in which `last` stands in the axis of the first of
// its largest entries, so that each is as small and as accurate as its parameter (see
// backends/reflection.py). v = last ± ‖last‖ e_p, (m), times a power of two that keeps its square
// in range.
template <class L> struct Reflection {
  typename L::Real *v;
  typename L::Real twice; // 2 / vᵀv, or 0 where last is zero and H is the identity
  typename L::Real size;  // v times this power of two is last ± ‖last‖ e_p

  KOOPCORE_HD void set(const typename L::Real *last, int m) {
    using Real = typename L::Real;
    const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
    Real square = zero, most = zero, head = zero, place = zero;
    for (int i = 0; i < m; ++i) {
      const Real entry = L::abs(last[i]);
      const typename L::Mask larger = entry > most;
      most = L::select(larger, entry, most);
      head = L::select(larger, last[i], head);
      place = L::select(larger, L::broadcast(i), place);
    }
    Real unit = L::power_of_two_scale(most);
    unit = unit * unit;
    size = one / unit;
    for (int i = 0; i < m; ++i) {
      v[i] = last[i] * unit;
      square += v[i] * v[i];
    }
    const Real root = L::sqrt(square), signed_root = L::select(head < 0.0, -root, root);
    square = zero;
    for (int i = 0; i < m; ++i) {
      v[i] += L::select(L::equal(place, i), signed_root, zero);
      square += v[i] * v[i];
    }
    const typename L::Mask some = square > 0.0;
    twice = L::select(some, 2.0 / L::select(some, square, one), zero);
  }

  // x <- z = H (x - last) + H last, which rounds relative to the motion, but for the position in
  // axis p: H last = last - size v.
  KOOPCORE_HD void apply(const typename L::Real *last, typename L::Real *x, int m) const {
    typename L::Real along = L::broadcast(0.0);
    for (int i = 0; i < m; ++i)
      along += (x[i] - last[i]) * v[i];
    along *= twice;
    for (int i = 0; i < m; ++i) {
      const typename L::Real motion = x[i] - size * v[i]; // exact product: one rounding
      x[i] = motion - along * v[i];
    }
  }
};

// The R × C entries of `add_outer` from row i and column j on.
template <class L, int R, int C>
KOOPCORE_HD void add_outer_tile(const typename L::Real *a, const typename L::Real *b, int steps,
                                int m, typename L::Real *sums) {
  typename L::Real s[R][C];
  KOOPCORE_UNROLL
  for (int r = 0; r < R; ++r)
    KOOPCORE_UNROLL
  for (int c = 0; c < C; ++c)
    s[r][c] = sums[r * m + c];
  for (int t = 0; t < steps; ++t, a += m, b += m)
    KOOPCORE_UNROLL
  for (int r = 0; r < R; ++r)
    KOOPCORE_UNROLL
  for (int c = 0; c < C; ++c)
    s[r][c] += a[r] * b[c];
  KOOPCORE_UNROLL
  for (int r = 0; r < R; ++r)
    KOOPCORE_UNROLL
  for (int c = 0; c < C; ++c)
    sums[r * m + c] = s[r][c];
}

template <class L, int R>
KOOPCORE_HD void add_outer_rows(const typename L::Real *a, const typename L::Real *b, int steps,
                                int m, int columns, typename L::Real *sums) {
  int j = 0;
  for (; j + 4 <= columns; j += 4)
    add_outer_tile<L, R, 4>(a, b + j, steps, m, sums + j);
  if (columns - j == 3)
    add_outer_tile<L, R, 3>(a, b + j, steps, m, sums + j);
  else if (columns - j == 2)
    add_outer_tile<L, R, 2>(a, b + j, steps, m, sums + j);
  else if (columns - j == 1)
    add_outer_tile<L, R, 1>(a, b + j, steps, m, sums + j);
}

// sums (m × m) += Σ_{t<steps} a_t b_tᵀ; rows of a and b are m apart. With `lower` only the tiles
// that hold some of the lower triangle.
template <class L>
KOOPCORE_HD void add_outer(const typename L::Real *a, const typename L::Real *b, int steps, int m,
                           bool lower, typename L::Real *sums) {
  int i = 0;
  for (; i + 4 <= m; i += 4)
    add_outer_rows<L, 4>(a + i, b, steps, m, lower ? i + 4 : m, sums + i * m);
  if (m - i == 3)
    add_outer_rows<L, 3>(a + i, b, steps, m, m, sums + i * m);
  else if (m - i == 2)
    add_outer_rows<L, 2>(a + i, b, steps, m, m, sums + i * m);
  else if (m - i == 1)
    add_outer_rows<L, 1>(a + i, b, steps, m, m, sums + i * m);
}

} // namespace koopcore
