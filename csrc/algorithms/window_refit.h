// The fit of one group per lane from a second pass over its snapshots, as second_pass.h has it for
// small groups, on the snapshot side.
//
// Mirrors `triangular_factor` and `project_factor` in backends/second_pass.py: products with
// Y = B V, V from the Gram matrix of the first pass, are as accurate as an orthogonal factorization
// B = Q R.
#pragma once

#include "algorithms/projection.h"

namespace koopcore {

// Of Y = B V, V (N × N) in the basis of F, with zero columns past the rank; N = n - 1 or n - 2.
template <class L> struct WindowProducts {
  typename L::Real *across; // (N × n) YᵀB
  typename L::Real *inner;  // (N × N) YᵀY, of which the lower triangle is enough
  typename L::Real *state;  // (N) Yᵀx_n: of what sums of differences have lost, the newest digits
};

KOOPCORE_HD static constexpr int window_products(int size, int n) {
  return size * n + size * size + size;
}
KOOPCORE_HD static constexpr int window_refit_work(int size, int n) {
  return 6 * size * size + size * n + 2 * size;
}

// The fit of the window that `of` is of, into k, z and v of `to`, by the singular values of F, of
// which as many count as scaled columns of the basis have; its readout is work space. Returns the
// rank. work: window_refit_work(N, n).
template <class L>
KOOPCORE_HD typename L::Real refit_window(const WindowProducts<L> &of, int n, bool affine,
                                          const ProjectionArrays<L> &to, typename L::Real *work) {
  using Real = typename L::Real;
  const int first = affine ? 1 : 0, size = n - 1 - first, matrix = size * size;
  Real *root = work, *factor = root + matrix, *last = factor + size * n;
  Real *columns = last + size, *u = columns + matrix, *rest = u + matrix;
  Real rank = inverse_root<L>(of.inner, size, root, rest);
  multiply<L, Left::transposed>(root, of.across, size, size, n, factor); // R
  multiply<L, Left::transposed>(root, of.state, size, size, 1, last);
  Real *own = rest, *squares = own + matrix;
  each<L>(size, [&](int j) { // R_F in the basis, transposed
    Real sum = L::broadcast(0.0);
    for (int k = 0; k < size; ++k) {
      own[j * size + k] = factor[k * n + first + j];
      sum += own[j * size + k] * own[j * size + k];
    }
    squares[j] = sum;
  });
  const Real most = resolved_rank<L>(own, squares, size, rank_tolerance(size), squares + size);
  each<L>(size, [&](int k) { // F = Q R_F, transposed, in columns x_1, x_2, … or d_1, d_2, …
    Real sum = L::broadcast(0.0);
    for (int j = 0; j < size; ++j) {
      sum = affine ? factor[k * n + first + j] : Real(sum + factor[k * n + j]);
      columns[j * size + k] = sum;
    }
  });
  const Real square = sum_of<L>(matrix, [&](int i) { return columns[i] * columns[i]; });
  const Real scale = L::power_of_two_scale(square);
  each<L>(matrix, [&](int i) { columns[i] = columns[i] * scale; });
  rank = leading_columns<L>(columns, size, most, rank, to.v, u, rest);
  each<L>(matrix, [&](int i) { to.v[i] = to.v[i] * scale; });
  Real *ahead = columns;
  each<L>(size, [&](int k) {
    Real sum = factor[k * n];
    for (int j = 0; j < size; ++j) {
      sum = affine ? factor[k * n + first + 1 + j] : Real(sum + factor[k * n + 1 + j]);
      ahead[k * size + j] = sum;
    }
    if (affine)
      last[k] = factor[k * n + n - 1];
  });
  multiply<L, Left::plain>(ahead, to.v, size, size, size, to.readout);
  multiply<L, Left::transposed>(u, to.readout, size, size, size, to.k);
  multiply<L, Left::transposed>(u, last, size, size, 1, to.z);
  if (!affine)
    sum_rows<L>(to.v, size, true);
  return rank;
}

} // namespace koopcore
