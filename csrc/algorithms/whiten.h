// Whitening of a matrix of any rank, V Vᵀ = A⁺, by diagonally pivoted Cholesky; one group per lane.
//
// Mirrors `whiten` in backends/reference.py, for the groups that natural.h cannot factor. Each lane
// has its own pivot order, so nothing is ever permuted: rows stay in their natural places, and "the
// pivot row" is picked by masks. What depends on the data is masked too, and so W groups run
// together whatever their ranks.
#pragma once

#include "algorithms/product.h"

namespace koopcore {

constexpr double kPivotRange = 0.25; // diagonals scaled by powers of two are within this

// Row `pick` (per lane) of the symmetric matrix a (N × N) whose lower triangle is kept up to date.
template <class L>
KOOPCORE_HD void pick_symmetric(const typename L::Real *a, int size, const typename L::Real &pick,
                                typename L::Real *out) {
  for (int i = 0; i < size; ++i)
    out[i] = a[i * size];
  for (int r = 1; r < size; ++r) {
    const typename L::Mask chosen = pick > r - 0.5;
    for (int i = 0; i < r; ++i)
      out[i] = L::select(chosen, a[r * size + i], out[i]);
    for (int i = r; i < size; ++i)
      out[i] = L::select(chosen, a[i * size + r], out[i]);
  }
}

// L (N × N, row i = parameter i, column k = pivot k) with a = L Lᵀ up to the noise; columns past
// the rank are zero. The lower triangle of `a`, scaled to a diagonal near 1, is overwritten. A
// small pivot has rounding in the rows below, which must not be those of far larger columns: of the
// pivots within kPivotRange of the largest, any of which finds the rank, the one that is largest
// times its weight, a squared scale, comes first, and a row in which only noise is left takes no
// part in pivots smaller than its noise. Returns the rank; largest and smallest are the extreme
// diagonal entries of L. work: 2 N.
template <class L>
KOOPCORE_HD typename L::Real pivoted_cholesky(typename L::Real *a, int size,
                                              const typename L::Real *weight,
                                              typename L::Real *factor, typename L::Real &largest,
                                              typename L::Real &smallest, typename L::Real *work) {
  using Real = typename L::Real;
  const Real zero = L::broadcast(0.0), done = L::broadcast(-HUGE_VAL);
  Real *column = work, *rest = work + size;
  Real greatest = zero;
  for (int i = 0; i < size; ++i) {
    rest[i] = a[i * size + i];
    greatest = L::max(greatest, rest[i]);
  }
  const Real tolerance = rank_tolerance(size) * greatest;
  typename L::Mask alive = L::everywhere();
  Real rank = zero;
  largest = zero;
  smallest = L::broadcast(HUGE_VAL);
  for (int k = 0; k < size; ++k) {
    Real most = zero, pivot = zero, pick = zero, near = zero;
    for (int i = 0; i < size; ++i)
      near = L::max(near, rest[i]);
    near = L::max(near * kPivotRange, tolerance);
    for (int i = 0; i < size; ++i) {
      const Real own = L::select(rest[i] > near, rest[i] * weight[i], zero);
      const typename L::Mask above = own > most;
      most = L::select(above, own, most);
      pivot = L::select(above, rest[i], pivot);
      pick = L::select(above, L::broadcast(double(i)), pick);
    }
    alive = L::both(alive, most > zero);
    rank = L::select(alive, L::broadcast(k + 1.0), rank);
    const Real root = L::sqrt(L::select(alive, pivot, L::broadcast(1.0)));
    largest = L::select(alive, L::max(largest, root), largest);
    smallest = L::select(L::both(alive, root < smallest), root, smallest);
    const Real inverse = 1.0 / root;
    pick_symmetric<L>(a, size, pick, column);
    for (int i = 0; i < size; ++i) {
      // An earlier pivot has nothing left; what rounding leaves there is not used.
      const typename L::Mask open = L::both(alive, rest[i] > done);
      const typename L::Mask here = L::both(pick > i - 0.5, pick < i + 0.5);
      Real entry = column[i] * inverse;
      const Real small = L::select(tolerance * weight[i] > most, zero, entry);
      entry = L::select(rest[i] > tolerance, entry, small);
      column[i] = L::select(open, L::select(here, root, entry), zero);
      factor[i * size + k] = column[i];
      rest[i] = L::select(here, done, rest[i] - column[i] * column[i]);
    }
    for (int i = 0; i < size; ++i)
      for (int j = 0; j <= i; ++j)
        a[i * size + j] -= column[i] * column[j];
  }
  return rank;
}

// v (N × N) <- the pseudo-inverse of the transpose of r (N × N), whose nonzero columns are linearly
// independent: r = Q T by Gram-Schmidt, twice over, and v = Q T^{-T}. Zero columns stay zero. With
// F = Q' rᵀ, F⁺ = v Q'ᵀ. work: N² + 2 N.
template <class L>
KOOPCORE_HD void transposed_pseudo_inverse(const typename L::Real *r, int size, typename L::Real *v,
                                           typename L::Real *work) {
  using Real = typename L::Real;
  const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
  Real *t = work, *inverse = t + size * size, *along = inverse + size;
  for (int k = 0; k < size; ++k) {
    for (int i = 0; i < size; ++i)
      v[i * size + k] = r[i * size + k];
    for (int j = 0; j < k; ++j)
      t[j * size + k] = zero;
    for (int turn = 0; turn < 2; ++turn) {
      for (int j = 0; j < k; ++j)
        along[j] = zero;
      for (int i = 0; i < size; ++i)
        for (int j = 0; j < k; ++j)
          along[j] += v[i * size + j] * v[i * size + k];
      for (int i = 0; i < size; ++i) {
        Real x = v[i * size + k];
        for (int j = 0; j < k; ++j)
          x -= v[i * size + j] * along[j];
        v[i * size + k] = x;
      }
      for (int j = 0; j < k; ++j)
        t[j * size + k] += along[j];
    }
    Real square = zero;
    for (int i = 0; i < size; ++i)
      square += v[i * size + k] * v[i * size + k];
    const typename L::Mask some = square > zero;
    inverse[k] = L::select(some, 1.0 / L::sqrt(L::select(some, square, one)), zero);
    for (int i = 0; i < size; ++i)
      v[i * size + k] = v[i * size + k] * inverse[k];
  }
  for (int i = 0; i < size; ++i) // v Tᵀ = Q
    for (int k = size; k-- > 0;) {
      Real x = v[i * size + k];
      for (int j = k + 1; j < size; ++j)
        x -= v[i * size + j] * t[k * size + j];
      v[i * size + k] = x * inverse[k];
    }
}

// Running sums over the rows of a (N × N), from the first on, or from the last (`back`): from
// [x_1, d_1 …] to [x_1, x_2 …], and the transposed of that.
template <class L> KOOPCORE_HD void sum_rows(typename L::Real *a, int size, bool back) {
  for (int i = 1; i < size; ++i) {
    typename L::Real *to = a + (back ? size - 1 - i : i) * size;
    const typename L::Real *from = back ? to + size : to - size;
    for (int k = 0; k < size; ++k)
      to[k] += from[k];
  }
}

} // namespace koopcore
