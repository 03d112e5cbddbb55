// Whitening of a matrix of any rank, V Vᵀ = A⁺, by diagonally pivoted Cholesky; one group per lane.
//
// For the groups that natural.h cannot factor. Each lane has its own pivot order, so nothing is
// ever permuted: rows stay in their natural places, and "the pivot row" is picked by masks. What
// depends on the data is masked too, and so W groups run together whatever their ranks.
#pragma once

#include "algorithms/product.h"

namespace koopcore {

// Row `pick` (per lane) of the square matrix a (N × N): out_i = a[pick][i].
template <class L>
KOOPCORE_HD void pick_row(const typename L::Real *a, int size, int columns,
                          const typename L::Real &pick, typename L::Real *out) {
  for (int i = 0; i < columns; ++i)
    out[i] = a[i];
  for (int r = 1; r < size; ++r) {
    const typename L::Mask chosen = pick > r - 0.5;
    for (int i = 0; i < columns; ++i)
      out[i] = L::select(chosen, a[r * size + i], out[i]);
  }
}

// The same row of a symmetric matrix of which only the lower triangle is kept up to date.
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
// the rank are zero. The lower triangle of `a` is overwritten; order[k] is the parameter of pivot
// k. Returns the rank; largest and smallest are the extreme diagonal entries of L. work: 2 N.
template <class L>
KOOPCORE_HD typename L::Real
pivoted_cholesky(typename L::Real *a, int size, typename L::Real *factor, typename L::Real *order,
                 typename L::Real &largest, typename L::Real &smallest, typename L::Real *work) {
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
    Real pivot = rest[0], pick = zero;
    for (int i = 1; i < size; ++i) {
      const typename L::Mask above = rest[i] > pivot;
      pivot = L::select(above, rest[i], pivot);
      pick = L::select(above, L::broadcast(double(i)), pick);
    }
    alive = L::both(alive, pivot > tolerance);
    order[k] = pick;
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
      column[i] = L::select(open, L::select(here, root, column[i] * inverse), zero);
      factor[i * size + k] = column[i];
      rest[i] = L::select(here, done, rest[i] - column[i] * column[i]);
    }
    for (int i = 0; i < size; ++i)
      for (int j = 0; j <= i; ++j)
        a[i * size + j] -= column[i] * column[j];
  }
  return rank;
}

// R rows x of X with X (C Cᵀ) = B, for the lower triangular C (N × N) with 1/diag C; x holds B on
// entry. The rows share every entry of C.
template <class L, int R>
KOOPCORE_HD void solve_normal_rows(const typename L::Real *c, const typename L::Real *reciprocal,
                                   int size, typename L::Real *x) {
  using Real = typename L::Real;
  for (int turn = 0; turn < 2; ++turn)
    for (int step = 0; step < size; ++step) {
      const int j = turn == 0 ? step : size - 1 - step;
      const int low = turn == 0 ? 0 : j + 1, high = turn == 0 ? j : size;
      Real s[R];
      KOOPCORE_UNROLL
      for (int r = 0; r < R; ++r)
        s[r] = x[r * size + j];
      for (int k = low; k < high; ++k) {
        const Real entry = turn == 0 ? c[j * size + k] : c[k * size + j];
        KOOPCORE_UNROLL
        for (int r = 0; r < R; ++r)
          s[r] -= entry * x[r * size + k];
      }
      KOOPCORE_UNROLL
      for (int r = 0; r < R; ++r)
        x[r * size + j] = s[r] * reciprocal[j];
    }
}

// V = L (LᵀL)⁻¹ for any rank (Courrieu 2005). The columns of L are scaled to l_{p_k,k} = 1 first:
// the pivoting leaves them well conditioned. Columns past the rank come out as zeros. work: N² +
// 2N.
template <class L>
KOOPCORE_HD void pseudo_inverse_factor(const typename L::Real *factor,
                                       const typename L::Real *order, int size, typename L::Real *v,
                                       typename L::Real *work) {
  using Real = typename L::Real;
  const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
  Real *normal = work, *inverse = normal + size * size, *row = inverse + size;
  for (int k = 0; k < size; ++k) {
    pick_row<L>(factor, size, k + 1, order[k], row);
    inverse[k] = L::select(row[k] > 0.0, 1.0 / row[k], zero);
    for (int i = 0; i < size; ++i)
      v[i * size + k] = factor[i * size + k] * inverse[k];
  }
  multiply<L, Left::transposed>(v, v, size, size, size, normal);
  Real *reciprocal = row;          // of the diagonal of its Cholesky factor, made in place
  for (int k = 0; k < size; ++k) { // by columns, so that the rows below are independent
    const Real pivot = normal[k * size + k];
    reciprocal[k] = 1.0 / L::sqrt(L::select(pivot > 0.0, pivot, one)); // 1 past the rank
    for (int j = k + 1; j < size; ++j)
      normal[j * size + k] = normal[j * size + k] * reciprocal[k];
    for (int j = k + 1; j < size; ++j)
      for (int i = k + 1; i <= j; ++i)
        normal[j * size + i] -= normal[j * size + k] * normal[i * size + k];
  }
  int i = 0;
  for (; i + 4 <= size; i += 4)
    solve_normal_rows<L, 4>(normal, reciprocal, size, v + i * size);
  if (size - i == 3)
    solve_normal_rows<L, 3>(normal, reciprocal, size, v + i * size);
  else if (size - i == 2)
    solve_normal_rows<L, 2>(normal, reciprocal, size, v + i * size);
  else if (size - i == 1)
    solve_normal_rows<L, 1>(normal, reciprocal, size, v + i * size);
  for (i = 0; i < size; ++i)
    for (int j = 0; j < size; ++j)
      v[i * size + j] *= inverse[j];
}

} // namespace koopcore
