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
// diagonal entries of L; picks (N), or null, the rows of the pivots, -1 past the rank. work: 2 N.
template <class L>
KOOPCORE_HD typename L::Real
pivoted_cholesky(typename L::Real *a, int size, const typename L::Real *weight,
                 typename L::Real *factor, typename L::Real &largest, typename L::Real &smallest,
                 typename L::Real *picks, typename L::Real *work) {
  using Real = typename L::Real;
  const Real zero = L::broadcast(0.0), done = L::broadcast(-HUGE_VAL);
  Real *column = work, *rest = work + size;
  Real greatest = zero;
  each<L>(size, [&](int i) { rest[i] = a[i * size + i]; });
  for (int i = 0; i < size; ++i)
    greatest = L::max(greatest, rest[i]);
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
    if (picks != nullptr)
      each<L>(1, [&](int) { picks[k] = L::select(alive, pick, L::broadcast(-1.0)); });
    rank = L::select(alive, L::broadcast(k + 1.0), rank);
    const Real root = L::sqrt(L::select(alive, pivot, L::broadcast(1.0)));
    largest = L::select(alive, L::max(largest, root), largest);
    smallest = L::select(L::both(alive, root < smallest), root, smallest);
    const Real inverse = 1.0 / root;
    pick_symmetric<L>(a, size, pick, column);
    each<L>(size, [&](int i) {
      // An earlier pivot has nothing left; what rounding leaves there is not used.
      const typename L::Mask open = L::both(alive, rest[i] > done);
      const typename L::Mask here = L::both(pick > i - 0.5, pick < i + 0.5);
      Real entry = column[i] * inverse;
      const Real small = L::select(tolerance * weight[i] > most, zero, entry);
      entry = L::select(rest[i] > tolerance, entry, small);
      column[i] = L::select(open, L::select(here, root, entry), zero);
      factor[i * size + k] = column[i];
      rest[i] = L::select(here, done, rest[i] - column[i] * column[i]);
    });
    each<L>(size, [&](int i) {
      for (int j = 0; j <= i; ++j)
        a[i * size + j] -= column[i] * column[j];
    });
  }
  return rank;
}

// out[c] <- Σ_i a_ic x_i over the rows of a and the column x, both `size` apart.
template <class L, int C>
KOOPCORE_HD void column_products(const typename L::Real *a, const typename L::Real *x, int size,
                                 typename L::Real *out) {
  typename L::Real s[C];
  KOOPCORE_UNROLL
  for (int c = 0; c < C; ++c)
    s[c] = L::broadcast(0.0);
  for (int i = 0; i < size; ++i)
    KOOPCORE_UNROLL
  for (int c = 0; c < C; ++c)
    s[c] += a[i * size + c] * x[i * size];
  KOOPCORE_UNROLL
  for (int c = 0; c < C; ++c)
    out[c] = s[c];
}

// R entries of the column x, `size` apart, less Σ_j a_ij b_j over j < count; and times `factor`.
template <class L, int R>
KOOPCORE_HD void subtract_products(const typename L::Real *a, const typename L::Real *b, int count,
                                   int size, const typename L::Real &factor, typename L::Real *x) {
  typename L::Real s[R];
  KOOPCORE_UNROLL
  for (int r = 0; r < R; ++r)
    s[r] = x[r * size];
  for (int j = 0; j < count; ++j)
    KOOPCORE_UNROLL
  for (int r = 0; r < R; ++r)
    s[r] -= a[r * size + j] * b[j];
  KOOPCORE_UNROLL
  for (int r = 0; r < R; ++r)
    x[r * size] = s[r] * factor;
}

// `column_products` of the first `count` columns.
template <class L>
KOOPCORE_HD void products_with_columns(const typename L::Real *a, const typename L::Real *x,
                                       int count, int size, typename L::Real *out) {
  int j = 0;
  for (; j + 4 <= count; j += 4)
    column_products<L, 4>(a + j, x, size, out + j);
  if (count - j == 3)
    column_products<L, 3>(a + j, x, size, out + j);
  else if (count - j == 2)
    column_products<L, 2>(a + j, x, size, out + j);
  else if (count - j == 1)
    column_products<L, 1>(a + j, x, size, out + j);
}

// `subtract_products` from all rows of a (N × N).
template <class L>
KOOPCORE_HD void subtract_from_column(const typename L::Real *a, const typename L::Real *b,
                                      int count, int size, const typename L::Real &factor,
                                      typename L::Real *x) {
  int i = 0;
  for (; i + 4 <= size; i += 4)
    subtract_products<L, 4>(a + i * size, b, count, size, factor, x + i * size);
  if (size - i == 3)
    subtract_products<L, 3>(a + i * size, b, count, size, factor, x + i * size);
  else if (size - i == 2)
    subtract_products<L, 2>(a + i * size, b, count, size, factor, x + i * size);
  else if (size - i == 1)
    subtract_products<L, 1>(a + i * size, b, count, size, factor, x + i * size);
}

// v (N × N) <- L_11^{-T} in the rows of the pivots of `pivoted_cholesky`, and a column for each
// other row, less what the pivots have of it: with F S = Q Lᵀ the columns of F S v are orthonormal,
// and then what is left, as if it were 2^-26. picks are completed. work: 2 N.
template <class L>
KOOPCORE_HD void whitener_of_pivots(const typename L::Real *factor, int size,
                                    typename L::Real *picks, typename L::Real *v,
                                    typename L::Real *work) {
  using Real = typename L::Real;
  const Real zero = L::broadcast(0.0), one = L::broadcast(1.0), done = L::broadcast(-HUGE_VAL);
  Real *row = work, *rest = row + size; // done: a pivot
  for (int i = 0; i < size; ++i) {
    rest[i] = zero;
    for (int k = 0; k < size; ++k)
      rest[i] = L::select(L::both(picks[k] > i - 0.5, picks[k] < i + 0.5), done, rest[i]);
  }
  for (int k = 0; k < size; ++k) {
    Real pick = picks[k];
    const typename L::Mask none = pick < 0.0;
    for (int i = size; i-- > 0;) { // the first row that is no pivot
      const typename L::Mask open = rest[i] > done;
      pick = L::select(L::both(none, open), L::broadcast(double(i)), pick);
    }
    picks[k] = pick;
    for (int j = 0; j <= k; ++j)
      row[j] = zero;
    for (int i = 0; i < size; ++i) {
      const typename L::Mask here = L::both(pick > i - 0.5, pick < i + 0.5);
      for (int j = 0; j <= k; ++j)
        row[j] = L::select(here, factor[i * size + j], row[j]);
      v[i * size + k] = L::select(here, one, zero);
      rest[i] = L::select(here, done, rest[i]);
    }
    const typename L::Mask some = row[k] > zero;
    const Real inverse = L::select(some, 1.0 / L::select(some, row[k], one), L::broadcast(0x1p26));
    subtract_from_column<L>(v, row, k, size, inverse, v + k);
  }
}

// v (N × N) <- the pseudo-inverse of the transpose of r (N × N), whose nonzero columns are linearly
// independent: r = Q T by Gram-Schmidt, twice over, and v = Q T^{-T}. Zero columns stay zero. With
// F = Q' rᵀ, F⁺ = v Q'ᵀ. work: N² + 2 N.
template <class L>
KOOPCORE_HD KOOPCORE_CALLED void transposed_pseudo_inverse(const typename L::Real *r, int size,
                                                           typename L::Real *v,
                                                           typename L::Real *work) {
  using Real = typename L::Real;
  const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
  Real *t = work, *inverse = t + size * size, *along = inverse + size;
  for (int k = 0; k < size; ++k) {
    each<L>(size, [&](int i) {
      v[i * size + k] = r[i * size + k];
      t[k * size + i] = zero; // T by columns
    });
    for (int turn = 0; turn < 2; ++turn) {
      products_with_columns<L>(v, v + k, k, size, along);
      subtract_from_column<L>(v, along, k, size, one, v + k);
      each<L>(k, [&](int i) { t[k * size + i] += along[i]; });
    }
    Real square = zero;
    for (int i = 0; i < size; ++i)
      square += v[i * size + k] * v[i * size + k];
    const typename L::Mask some = square > zero;
    const Real over = L::select(some, 1.0 / L::sqrt(L::select(some, square, one)), zero);
    each<L>(size, [&](int i) { v[i * size + k] = v[i * size + k] * over; });
    each<L>(1, [&](int) { inverse[k] = over; });
  }
  for (int k = size; k-- > 0;) { // v Tᵀ = Q
    each<L>(size - 1 - k, [&](int j) { along[k + 1 + j] = t[(k + 1 + j) * size + k]; });
    subtract_from_column<L>(v + k + 1, along + k + 1, size - 1 - k, size, inverse[k], v + k);
  }
}

// t (m × m) <- upper triangular T with Tᵀ A T = 1, by the Cholesky factorization of the symmetric
// A, which is near the identity except where a direction was rounding in the first pass: a column
// of less than 1/1000 beside the others is left out, as a column of zeros. What was rounding may
// also be long, if it is mostly along the others; they count as before, and it counts if more than
// rounding is left of it. The lower triangle of `a` is read. Returns how many columns are not zero.
// work: m².
template <class L>
KOOPCORE_HD typename L::Real inverse_root(const typename L::Real *a, int m, typename L::Real *t,
                                          typename L::Real *work) {
  using Real = typename L::Real;
  const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
  Real *factor = work, greatest = zero, count = zero;
  for (int i = 0; i < m; ++i)
    greatest = L::max(greatest, a[i * m + i]);
  greatest = L::select(greatest < one, greatest, one);
  for (int k = 0; k < m; ++k) {
    const Real *row = factor + k * m;
    Real pivot = a[k * m + k];
    const Real least = L::max(greatest * 0x1p-20, pivot * 0x1p-40);
    for (int j = 0; j < k; ++j)
      pivot -= row[j] * row[j];
    const typename L::Mask some = pivot > least;
    count += L::select(some, one, zero);
    const Real inverse = L::select(some, 1.0 / L::sqrt(L::select(some, pivot, one)), zero);
    each<L>(m - 1 - k, [&](int below) { // column k of the factor
      const int r = k + 1 + below;
      Real x = a[r * m + k];
      for (int i = 0; i < k; ++i)
        x -= factor[r * m + i] * row[i];
      factor[r * m + k] = x * inverse; // 1/l_kk, or 0
    });
    each<L>(k + 1, [&](int j) {
      Real x = zero;
      for (int i = j; i < k; ++i)
        x -= row[i] * t[j * m + i];
      t[k * m + j] = zero;
      t[j * m + k] = j < k ? Real(x * inverse) : inverse;
    });
  }
  return count;
}

// Running sums over the rows of a (N × N), from the first on, or from the last (`back`): from
// [x_1, d_1 …] to [x_1, x_2 …], and the transposed of that.
template <class L> KOOPCORE_HD void sum_rows(typename L::Real *a, int size, bool back) {
  each<L>(size, [&](int k) {
    for (int i = 1; i < size; ++i) {
      typename L::Real *to = a + (back ? size - 1 - i : i) * size + k;
      *to += back ? to[size] : to[-size];
    }
  });
}

} // namespace koopcore
