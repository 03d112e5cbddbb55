// The dense fit of groups of full rank: Cholesky in natural order and two triangular solves.
//
// With A = S⁻¹ L D Lᵀ S⁻¹, S the power-of-two scales, the whitener is V = S L^{-T} D^{-1/2}, and
//     H V = (H S) L^{-T} D^{-1/2},    K = Vᵀ (H V) = D^{-1/2} L⁻¹ S (H V):
// N³/2 multiplications each, and V itself is not needed. Nothing is masked: a lane that is turned
// down goes on with other numbers (see `cholesky`), which the caller replaces.
#pragma once

#include "algorithms/cholesky.h"

namespace koopcore {

// A factored per lane. The numbers belong to the caller: packed (N(N+1)/2), scale and root (N),
// inverse (N²).
template <class L> struct NaturalFactor {
  typename L::Real *packed;  // unit L below the diagonal, D on it
  typename L::Real *scale;   // S
  typename L::Real *root;    // D^{-1/2}
  typename L::Real *inverse; // (N, N) L⁻¹ below the diagonal and on it
  int size;
};

// Diagonal pivoting must find full rank by this factor before natural order is used in its place.
constexpr double kSureOfRank = 4.0;

KOOPCORE_HD static constexpr int natural_size(int size) {
  return packed_size(size) + 2 * size + size * size;
}

template <class L>
KOOPCORE_HD NaturalFactor<L> natural_factor_at(typename L::Real *work, int size) {
  typename L::Real *scale = work + packed_size(size);
  return {work, scale, scale + size, scale + 2 * size, size};
}

// Columns j … j + C - 1 of L⁻¹: row i is e_i - Σ l_ik (row k).
template <class L, int C> KOOPCORE_HD void invert_columns(const NaturalFactor<L> &f, int j) {
  using Real = typename L::Real;
  for (int i = j; i < f.size; ++i) {
    const Real *row = f.packed + packed_index(i, 0);
    Real s[C];
    KOOPCORE_UNROLL
    for (int c = 0; c < C; ++c)
      s[c] = L::broadcast(i == j + c ? 1.0 : 0.0);
    for (int k = j; k < i; ++k)
      KOOPCORE_UNROLL
    for (int c = 0; c < C; ++c)
      s[c] -= row[k] * f.inverse[k * f.size + j + c];
    KOOPCORE_UNROLL
    for (int c = 0; c < C; ++c)
      f.inverse[i * f.size + j + c] = s[c];
  }
}

template <class L> KOOPCORE_HD void invert_natural(const NaturalFactor<L> &f) {
  int j = 0;
  for (; j + 4 <= f.size; j += 4)
    invert_columns<L, 4>(f, j);
  if (f.size - j == 3)
    invert_columns<L, 3>(f, j);
  else if (f.size - j == 2)
    invert_columns<L, 2>(f, j);
  else if (f.size - j == 1)
    invert_columns<L, 1>(f, j);
}

// The diagonal of A⁻¹: its greatest entry in the units of the factor, L^{-T} D⁻¹ L⁻¹, and its sum
// in those of A.
template <class L>
KOOPCORE_HD void diagonal_of_inverse(const NaturalFactor<L> &f, typename L::Real &greatest,
                                     typename L::Real &sum) {
  using Real = typename L::Real;
  greatest = sum = L::broadcast(0.0);
  for (int j = 0; j < f.size; ++j) {
    Real s = L::broadcast(0.0);
    for (int i = j; i < f.size; ++i) {
      const Real entry = f.inverse[i * f.size + j] * f.root[i];
      s += entry * entry;
    }
    greatest = L::max(greatest, s);
    sum += s * f.scale[j] * f.scale[j];
  }
}

// Factors the symmetric a (N × N; the lower triangle is read), with the ridge relative to its mean
// scaled diagonal. Returns the rank: N where nothing broke down and, without a ridge, diagonal
// pivoting would find it too and no singular value of F is near the cut-off. Pivoting's pivots
// fall, and its last one is 1/(A⁻¹)_jj of some j; σ_1/σ_N is at most the root of the product of the
// traces of A and A⁻¹. `condition` estimates cond(F). work: 4 N.
template <class L>
KOOPCORE_HD typename L::Real factor_natural(const typename L::Real *a, double ridge,
                                            const NaturalFactor<L> &f, typename L::Real &condition,
                                            typename L::Real *work) {
  using Real = typename L::Real;
  const int size = f.size;
  Real trace = L::broadcast(0.0), greatest = trace, square = trace;
  for (int i = 0; i < size; ++i) {
    square += a[i * size + i];
    f.scale[i] = L::power_of_two_scale(a[i * size + i]);
    for (int j = 0; j <= i; ++j)
      f.packed[packed_index(i, j)] = a[i * size + j] * (f.scale[i] * f.scale[j]);
    trace += f.packed[packed_index(i, i)];
    greatest = L::max(greatest, f.packed[packed_index(i, i)]);
  }
  for (int i = 0; i < size; ++i)
    f.packed[packed_index(i, i)] += trace * (ridge / size);
  const Real rank = cholesky<L>(f.packed, size, size, work);
  Real largest = L::broadcast(0.0), smallest = L::broadcast(HUGE_VAL);
  for (int i = 0; i < size; ++i) {
    const Real d = f.packed[packed_index(i, i)];
    largest = L::max(largest, d);
    smallest = L::select(d < smallest, d, smallest);
    f.root[i] = 1.0 / L::sqrt(d);
  }
  condition = L::sqrt(largest / smallest);
  invert_natural<L>(f);
  if (ridge > 0.0)
    return rank;
  Real greatest_inverse, inverse_square;
  diagonal_of_inverse<L>(f, greatest_inverse, inverse_square);
  const double tolerance = rank_tolerance(size);
  const Real pivots = kSureOfRank * tolerance * greatest * greatest_inverse;
  const Real values = tolerance * tolerance * square * inverse_square;
  return L::select(L::both(pivots < 1.0, values < 1.0), rank, L::broadcast(0.0));
}

// Rows i … i + R - 1 and columns k … k + C - 1 of X with X Lᵀ = B; `x` holds B on entry.
template <class L, int R, int C>
KOOPCORE_HD void solve_right_tile(const NaturalFactor<L> &f, int k, typename L::Real *x) {
  using Real = typename L::Real;
  Real s[R][C];
  KOOPCORE_UNROLL
  for (int r = 0; r < R; ++r)
    KOOPCORE_UNROLL
  for (int c = 0; c < C; ++c)
    s[r][c] = x[r * f.size + k + c];
  for (int j = 0; j < k; ++j)
    KOOPCORE_UNROLL
  for (int c = 0; c < C; ++c) {
    const Real l = f.packed[packed_index(k + c, j)];
    KOOPCORE_UNROLL
    for (int r = 0; r < R; ++r)
      s[r][c] -= x[r * f.size + j] * l;
  }
  KOOPCORE_UNROLL
  for (int c = 0; c < C; ++c) {
    KOOPCORE_UNROLL
    for (int b = 0; b < c; ++b) {
      const Real l = f.packed[packed_index(k + c, k + b)];
      KOOPCORE_UNROLL
      for (int r = 0; r < R; ++r)
        s[r][c] -= s[r][b] * l;
    }
    KOOPCORE_UNROLL
    for (int r = 0; r < R; ++r)
      x[r * f.size + k + c] = s[r][c];
  }
}

template <class L, int R>
KOOPCORE_HD void solve_right_rows(const NaturalFactor<L> &f, typename L::Real *x) {
  int k = 0;
  for (; k + 4 <= f.size; k += 4)
    solve_right_tile<L, R, 4>(f, k, x);
  if (f.size - k == 3)
    solve_right_tile<L, R, 3>(f, k, x);
  else if (f.size - k == 2)
    solve_right_tile<L, R, 2>(f, k, x);
  else if (f.size - k == 1)
    solve_right_tile<L, R, 1>(f, k, x);
}

// x (N × N) <- H V from H.
template <class L> KOOPCORE_HD void times_whitener(const NaturalFactor<L> &f, typename L::Real *x) {
  const int size = f.size;
  for (int i = 0; i < size; ++i)
    for (int j = 0; j < size; ++j)
      x[i * size + j] = x[i * size + j] * f.scale[j];
  int i = 0;
  for (; i + 4 <= size; i += 4)
    solve_right_rows<L, 4>(f, x + i * size);
  if (size - i == 3)
    solve_right_rows<L, 3>(f, x + i * size);
  else if (size - i == 2)
    solve_right_rows<L, 2>(f, x + i * size);
  else if (size - i == 1)
    solve_right_rows<L, 1>(f, x + i * size);
  for (int row = 0; row < size; ++row)
    for (int j = 0; j < size; ++j)
      x[row * size + j] = x[row * size + j] * f.root[j];
}

// Rows k … k + R - 1 of the C columns at x of L⁻¹ X, the rows before being done.
template <class L, int R, int C>
KOOPCORE_HD void solve_left_tile(const NaturalFactor<L> &f, int k, int width, typename L::Real *x) {
  using Real = typename L::Real;
  Real s[R][C];
  KOOPCORE_UNROLL
  for (int r = 0; r < R; ++r)
    KOOPCORE_UNROLL
  for (int c = 0; c < C; ++c)
    s[r][c] = x[(k + r) * width + c];
  for (int i = 0; i < k; ++i)
    KOOPCORE_UNROLL
  for (int r = 0; r < R; ++r) {
    const Real l = f.packed[packed_index(k + r, i)];
    KOOPCORE_UNROLL
    for (int c = 0; c < C; ++c)
      s[r][c] -= l * x[i * width + c];
  }
  KOOPCORE_UNROLL
  for (int r = 0; r < R; ++r) {
    KOOPCORE_UNROLL
    for (int b = 0; b < r; ++b) {
      const Real l = f.packed[packed_index(k + r, k + b)];
      KOOPCORE_UNROLL
      for (int c = 0; c < C; ++c)
        s[r][c] -= l * s[b][c];
    }
    KOOPCORE_UNROLL
    for (int c = 0; c < C; ++c)
      x[(k + r) * width + c] = s[r][c];
  }
}

template <class L, int C>
KOOPCORE_HD void solve_left_columns(const NaturalFactor<L> &f, int width, typename L::Real *x) {
  int k = 0;
  for (; k + 4 <= f.size; k += 4)
    solve_left_tile<L, 4, C>(f, k, width, x);
  if (f.size - k == 3)
    solve_left_tile<L, 3, C>(f, k, width, x);
  else if (f.size - k == 2)
    solve_left_tile<L, 2, C>(f, k, width, x);
  else if (f.size - k == 1)
    solve_left_tile<L, 1, C>(f, k, width, x);
}

// out (N × columns) <- Vᵀ X; out may be x.
template <class L>
KOOPCORE_HD void transposed_whitener_times(const NaturalFactor<L> &f, const typename L::Real *x,
                                           int columns, typename L::Real *out) {
  const int size = f.size;
  for (int i = 0; i < size; ++i)
    for (int j = 0; j < columns; ++j)
      out[i * columns + j] = f.scale[i] * x[i * columns + j];
  int j = 0;
  for (; j + 4 <= columns; j += 4)
    solve_left_columns<L, 4>(f, columns, out + j);
  if (columns - j == 3)
    solve_left_columns<L, 3>(f, columns, out + j);
  else if (columns - j == 2)
    solve_left_columns<L, 2>(f, columns, out + j);
  else if (columns - j == 1)
    solve_left_columns<L, 1>(f, columns, out + j);
  for (int i = 0; i < size; ++i)
    for (int column = 0; column < columns; ++column)
      out[i * columns + column] = out[i * columns + column] * f.root[i];
}

// v (N × N) <- V = S L^{-T} D^{-1/2}, upper triangular.
template <class L>
KOOPCORE_HD void natural_whitener(const NaturalFactor<L> &f, typename L::Real *v) {
  const int size = f.size;
  for (int i = 0; i < size; ++i)
    for (int j = 0; j < size; ++j) {
      if (j > i)
        v[j * size + i] = L::broadcast(0.0);
      else
        v[j * size + i] = f.inverse[i * size + j] * (f.scale[j] * f.root[i]);
    }
}

} // namespace koopcore
