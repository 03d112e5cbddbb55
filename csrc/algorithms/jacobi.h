// Truncation to the leading singular values by one-sided Jacobi rotations, one group per lane.
//
// Mirrors `truncate` in backends/reference.py. With F = Q Lᵀ, the columns of the lower factor L are
// rotated until they are orthogonal: L W = R Σ with R the right singular vectors of F, so that the
// columns of V = R Σ⁻¹ are the rotated columns over their squared norms. Demmel & Veselić (1992):
// one-sided Jacobi finds also the small singular values of graded columns to high accuracy.
#pragma once

#include "algorithms/lanes.h"

namespace koopcore {

constexpr int kJacobiSweeps = 30; // it converges in 6 to 10; the bound only ends bad input

// Whether two columns of squares alpha and beta and product gamma are to be turned, and by what:
// (x, y) <- (c x - s y, s x + c y).
template <class L>
KOOPCORE_HD typename L::Mask is_turned(const typename L::Real &alpha, const typename L::Real &beta,
                                       const typename L::Real &gamma) {
  return L::abs(gamma) > 0x1p-52 * L::sqrt(alpha * beta);
}
template <class L>
KOOPCORE_HD void rotation(const typename L::Real &alpha, const typename L::Real &beta,
                          const typename L::Real &gamma, const typename L::Mask &turn,
                          typename L::Real &c, typename L::Real &s) {
  using Real = typename L::Real;
  const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
  const Real zeta = (beta - alpha) / (2.0 * L::select(turn, gamma, one));
  const Real size_of = L::abs(zeta) + L::sqrt(one + zeta * zeta);
  const Real t = L::select(zeta < 0.0, -one, one) / size_of;
  c = L::select(turn, 1.0 / L::sqrt(one + t * t), one);
  s = L::select(turn, c * t, zero);
}

// Rotates the columns of a (N × N, row-major) until they are orthogonal to rounding, and those of w
// with them, if there is one.
template <class L>
KOOPCORE_HD KOOPCORE_CALLED void orthogonalize(typename L::Real *a, typename L::Real *w, int size) {
  using Real = typename L::Real;
  const Real zero = L::broadcast(0.0);
  for (int sweep = 0; sweep < kJacobiSweeps; ++sweep) {
    bool rotated = false;
    for (int p = 0; p < size; ++p)
      for (int q = p + 1; q < size; ++q) {
        Real alpha = zero, beta = zero, gamma = zero;
        for (int i = 0; i < size; ++i) {
          const Real x = a[i * size + p], y = a[i * size + q];
          alpha += x * x;
          beta += y * y;
          gamma += x * y;
        }
        const typename L::Mask turn = is_turned<L>(alpha, beta, gamma);
        if (!L::any(turn))
          continue;
        rotated = true;
        Real c, s;
        rotation<L>(alpha, beta, gamma, turn, c, s);
        for (int i = 0; i < size; ++i) {
          const Real x = a[i * size + p], y = a[i * size + q];
          a[i * size + p] = c * x - s * y;
          a[i * size + q] = s * x + c * y;
        }
        for (int i = 0; w != nullptr && i < size; ++i) {
          const Real x = w[i * size + p], y = w[i * size + q];
          w[i * size + p] = c * x - s * y;
          w[i * size + q] = s * x + c * y;
        }
      }
    if (!rotated)
      return;
  }
}

// v <- column `pick` (per lane) of a (N × N) times `by`, and u <- that of w, zeros where it is -1;
// v and u are columns of such matrices too.
template <class L>
KOOPCORE_HD void pick_columns(const typename L::Real *a, const typename L::Real *w, int size,
                              const typename L::Real &pick, const typename L::Real &by,
                              typename L::Real *v, typename L::Real *u) {
  for (int i = 0; i < size; ++i)
    v[i * size] = u[i * size] = L::broadcast(0.0);
  for (int j = 0; j < size; ++j) {
    const typename L::Mask here = L::both(pick > j - 0.5, pick < j + 0.5);
    for (int i = 0; i < size; ++i) {
      v[i * size] = L::select(here, a[i * size + j] * by, v[i * size]);
      u[i * size] = L::select(here, w[i * size + j], u[i * size]);
    }
  }
}

// v (N × N) <- the leading columns r_i/σ_i, zeros behind them: at most `most` of them, and none
// whose σ is within `rank_tolerance` of the largest. u (N × N) <- the columns of W with them.
// Returns how many. `lower` (N × N), at most 1 in size, is overwritten. work: N² + N.
template <class L>
KOOPCORE_HD typename L::Real truncate(typename L::Real *lower, int size,
                                      const typename L::Real &most, typename L::Real *v,
                                      typename L::Real *u, typename L::Real *work) {
  using Real = typename L::Real;
  const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
  Real *w = work, *square = w + size * size, greatest = zero, rank = zero;
  each<L>(size * size, [&](int i) { w[i] = i % (size + 1) == 0 ? one : zero; });
  orthogonalize<L>(lower, w, size);
  each<L>(size, [&](int j) {
    Real sum = zero;
    for (int i = 0; i < size; ++i)
      sum += lower[i * size + j] * lower[i * size + j];
    square[j] = sum;
  });
  for (int j = 0; j < size; ++j)
    greatest = L::max(greatest, square[j]);
  const Real least = greatest * (rank_tolerance(size) * rank_tolerance(size));
  for (int k = 0; k < size; ++k) {
    Real best = least, pick = L::broadcast(-1.0);
    const typename L::Mask open = most > k + 0.5;
    if (L::any(open))
      for (int j = 0; j < size; ++j) {
        const typename L::Mask above = L::both(open, square[j] > best);
        best = L::select(above, square[j], best);
        pick = L::select(above, L::broadcast(double(j)), pick);
      }
    const typename L::Mask some = pick > -0.5;
    rank = L::select(some, L::broadcast(k + 1.0), rank);
    const Real inverse = L::select(some, 1.0 / L::select(some, best, one), zero);
    pick_columns<L>(lower, w, size, pick, inverse, v + k, u + k);
    each<L>(size, [&](int j) {
      const typename L::Mask here = L::both(pick > j - 0.5, pick < j + 0.5);
      square[j] = L::select(here, zero, square[j]);
    });
  }
  return rank;
}

// How many singular values P (m × m) has, its rows scaled to unit length, whose squares are above
// `least` of the largest. squares (m): those lengths, squared. work: m².
template <class L>
KOOPCORE_HD typename L::Real resolved_rank(const typename L::Real *p,
                                           const typename L::Real *squares, int m, double least,
                                           typename L::Real *work) {
  using Real = typename L::Real;
  const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
  each<L>(m, [&](int i) {
    const typename L::Mask some = squares[i] > zero;
    const Real scale = L::select(some, 1.0 / L::sqrt(L::select(some, squares[i], one)), zero);
    for (int k = 0; k < m; ++k)
      work[i * m + k] = p[i * m + k] * scale;
  });
  orthogonalize<L>(work, static_cast<Real *>(nullptr), m);
  Real greatest = zero, count = zero;
  each<L>(m, [&](int k) { // the squared length of a column takes the place of its first entry
    Real square = zero;
    for (int i = 0; i < m; ++i)
      square += work[i * m + k] * work[i * m + k];
    work[k] = square;
  });
  for (int k = 0; k < m; ++k)
    greatest = L::max(greatest, work[k]);
  for (int k = 0; k < m; ++k)
    count += L::select(work[k] > greatest * least, one, zero);
  return count;
}

} // namespace koopcore
