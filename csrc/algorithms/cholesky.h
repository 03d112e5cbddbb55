// Cholesky factorization in time order, as A = L D Lᵀ with unit lower L, one group per lane.
//
// L D Lᵀ rather than L Lᵀ because each column then waits for one division and for no square root.
// Left-looking by blocks of four columns: 4 × 4 entries are brought up to date in registers.
#pragma once

#include "algorithms/lanes.h"

namespace koopcore {

// The factorization as far as it has come. A lane that broke down holds finite nonsense: its later
// columns are zero, which keeps infinities and slow denormals out of it.
template <class L> struct TimeOrderedCholesky {
  using Real = typename L::Real;

  Real *a;  // packed lower, rows × rows: L below the diagonal, D on it
  int rows; // rows past `columns` are right-hand sides: their pivot is a residual, may be zero
  int columns;
  double noise; // of the entries, in units of fp64 sums
  Real *scaled; // (4, rows) l_{k+c,j} d_j of the block's rows, for the finished columns j
  typename L::Mask alive;
  Real rank;           // columns done before a pivot broke down
  Real coupling[4][4]; // l_{k+c,k+b} d_{k+b} within the block, b < c
  Real inverse[4];     // 1 / d of the block's columns; zero where the lane broke down

  KOOPCORE_HD Real *row(int i) const { return a + packed_index(i, 0); }

  // The C columns from k on: their own rows.
  template <int C> KOOPCORE_HD void factor_diagonal(int k) {
    const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
    Real s[C][C], diagonal[C];
    KOOPCORE_UNROLL
    for (int r = 0; r < C; ++r) {
      diagonal[r] = row(k + r)[k + r];
      KOOPCORE_UNROLL
      for (int c = 0; c <= r; ++c)
        s[r][c] = row(k + r)[k + c];
    }
    for (int j = 0; j < k; ++j) {
      const Real d = row(j)[j];
      Real l[C];
      KOOPCORE_UNROLL
      for (int r = 0; r < C; ++r) {
        l[r] = row(k + r)[j];
        scaled[r * rows + j] = l[r] * d;
      }
      KOOPCORE_UNROLL
      for (int r = 0; r < C; ++r)
        KOOPCORE_UNROLL
      for (int c = 0; c <= r; ++c)
        s[r][c] -= l[r] * scaled[c * rows + j];
    }
    const double tolerance = noise * breakdown_tolerance(columns);
    KOOPCORE_UNROLL
    for (int c = 0; c < C; ++c) {
      Real pivot = s[c][c];
      if (k + c < columns) {
        alive = L::both(alive, pivot > tolerance * diagonal[c]);
        pivot = L::select(alive, pivot, one);
        rank = L::select(alive, L::broadcast(k + c + 1.0), rank);
        inverse[c] = L::select(alive, 1.0 / pivot, zero);
      } else {
        pivot = L::max(pivot, zero);
        inverse[c] = zero;
      }
      row(k + c)[k + c] = pivot;
      KOOPCORE_UNROLL
      for (int r = c + 1; r < C; ++r) {
        coupling[r][c] = L::select(alive, s[r][c], zero); // l d, as s = l d
        row(k + r)[k + c] = coupling[r][c] * inverse[c];
      }
      KOOPCORE_UNROLL
      for (int r = c + 1; r < C; ++r)
        KOOPCORE_UNROLL
      for (int b = c + 1; b <= r; ++b)
        s[r][b] -= row(k + r)[k + c] * coupling[b][c];
    }
  }

  // The four columns from k on: R rows from i on, all below the block.
  template <int R> KOOPCORE_HD void eliminate(int k, int i) {
    const Real zero = L::broadcast(0.0);
    Real *at[R], s[R][4];
    KOOPCORE_UNROLL
    for (int r = 0; r < R; ++r) {
      at[r] = row(i + r);
      KOOPCORE_UNROLL
      for (int c = 0; c < 4; ++c)
        s[r][c] = at[r][k + c];
    }
    for (int j = 0; j < k; ++j)
      KOOPCORE_UNROLL
    for (int r = 0; r < R; ++r) {
      const Real l = at[r][j];
      KOOPCORE_UNROLL
      for (int c = 0; c < 4; ++c)
        s[r][c] -= l * scaled[c * rows + j];
    }
    KOOPCORE_UNROLL
    for (int c = 0; c < 4; ++c)
      KOOPCORE_UNROLL
    for (int r = 0; r < R; ++r) {
      KOOPCORE_UNROLL
      for (int b = 0; b < c; ++b)
        s[r][c] -= s[r][b] * coupling[c][b];
      s[r][c] = L::select(alive, s[r][c] * inverse[c], zero);
      at[r][k + c] = s[r][c];
    }
  }
};

// Overwrites the equilibrated packed matrix a (rows × rows) by L below the diagonal and D on it.
// Returns the columns done before a pivot of the first `columns` broke down, as a number per lane.
// work: 4 rows numbers.
template <class L>
KOOPCORE_HD typename L::Real cholesky(typename L::Real *a, int rows, int columns,
                                      typename L::Real *work, double noise = 1.0) {
  TimeOrderedCholesky<L> f;
  f.a = a;
  f.rows = rows;
  f.columns = columns;
  f.noise = noise;
  f.scaled = work;
  f.alive = L::everywhere();
  for (int c = 0; c < 4; ++c) {
    f.inverse[c] = L::broadcast(0.0);
    for (int b = 0; b < 4; ++b)
      f.coupling[c][b] = L::broadcast(0.0);
  }
  f.rank = L::broadcast(0.0);
  for (int k = 0; k < rows; k += 4) {
    const int left = rows - k;
    if (left >= 4)
      f.template factor_diagonal<4>(k);
    else if (left == 3)
      f.template factor_diagonal<3>(k);
    else if (left == 2)
      f.template factor_diagonal<2>(k);
    else
      f.template factor_diagonal<1>(k);
    int i = k + 4;
    for (; i + 4 <= rows; i += 4)
      f.template eliminate<4>(k, i);
    if (rows - i == 3)
      f.template eliminate<3>(k, i);
    else if (rows - i == 2)
      f.template eliminate<2>(k, i);
    else if (rows - i == 1)
      f.template eliminate<1>(k, i);
  }
  return f.rank;
}

} // namespace koopcore
