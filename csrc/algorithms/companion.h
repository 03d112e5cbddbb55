// The companion fit of one group per lane, from its Gram matrix: coefficients and diagnostics.
//
// Mirrors `solve` in backends/reference.py. One Cholesky factorization in time order serves the
// full window and the held-out one: the leading blocks of L belong to the shorter windows, and row
// k of L is already the forward substitution of snapshot k.
#pragma once

#include "algorithms/cholesky.h"
#include "algorithms/recurrence.h"

namespace koopcore {

// What `Companion` of backends/protocol.py holds, for one group per lane.
template <class L> struct CompanionFit {
  typename L::Real rank, residual, condition, hindcast;
};

// Numbers (Real) that `fit_companion` needs as work space.
KOOPCORE_HD static constexpr int companion_work(int n) {
  return packed_size(n) + 5 * n + rollout_work(n);
}

// Coefficients a (k) of column k on the columns before it: on snapshots, or on differences.
template <class L>
KOOPCORE_HD void recurrence(const typename L::Real *factor, const typename L::Real *scale, int k,
                            bool affine, typename L::Real *a) {
  using Real = typename L::Real;
  const Real *target = factor + packed_index(k, 0);
  for (int i = 0; i < k; ++i)
    a[i] = target[i];
  for (int i = k; i-- > 0;) { // Lᵀ y = l_k, by rows of the unit L
    const Real *row = factor + packed_index(i, 0);
    const Real y = a[i];
    for (int j = 0; j < i; ++j)
      a[j] -= row[j] * y;
  }
  const Real unscale = 1.0 / scale[k];
  for (int i = 0; i < k; ++i)
    a[i] = a[i] * scale[i] * unscale;
  if (affine || k == 0)
    return;
  for (int i = 0; i + 1 < k; ++i) // from [x_1, d_1 …] to [x_1, x_2 …]
    a[i] -= a[i + 1];
  a[k - 1] += 1.0;
}

// ‖z‖² with D^{1/2} Lᵀ z = (±1, …, ±1), signs by which z grows: the smallest eigenvalue of L D Lᵀ
// (columns × columns) is at most columns/‖z‖², and mostly near that (LINPACK). z: (columns).
template <class L>
KOOPCORE_HD typename L::Real reach(const typename L::Real *factor, int columns,
                                   typename L::Real *z) {
  using Real = typename L::Real;
  Real square = L::broadcast(0.0);
  for (int i = 0; i < columns; ++i)
    z[i] = L::broadcast(0.0);
  for (int i = columns; i-- > 0;) {
    const Real *row = factor + packed_index(i, 0);
    const Real unit = 1.0 / L::sqrt(row[i]);
    const Real own = z[i] + L::select(z[i] < 0.0, -unit, unit);
    square += own * own;
    for (int j = 0; j < i; ++j)
      z[j] -= row[j] * own;
  }
  return square;
}

// ‖B w - x_n‖ / ‖x_n - x_{n-holdout}‖ from G = BᵀB; `weights` is overwritten by w - 1.
template <class L>
KOOPCORE_HD typename L::Real hindcast_error(const typename L::Real *gram, int n, int holdout,
                                            typename L::Real *weights) {
  using Real = typename L::Real;
  const Real zero = L::broadcast(0.0);
  Real square = zero, movement = zero;
  for (int i = 0; i < n; ++i)
    weights[i] = i < n - holdout ? Real(weights[i] - 1.0) : L::broadcast(-1.0);
  for (int i = 0; i < n; ++i) {
    const Real *row = gram + packed_index(i, 0);
    square += weights[i] * (2.0 * dot<L>(row, weights, i) + row[i] * weights[i]);
    if (i < n - holdout)
      continue;
    Real off = zero;
    for (int j = n - holdout; j < i; ++j)
      off += row[j];
    movement += 2.0 * off + row[i];
  }
  const typename L::Mask moved = movement > 0.0;
  const Real ratio = L::max(square, zero) / L::select(moved, movement, L::broadcast(1.0));
  return L::select(moved, L::sqrt(ratio), zero);
}

struct NothingToReload {
  KOOPCORE_HD void operator()() const {}
};

// Fits one group per lane from its packed Gram matrix G = BᵀB. coefficients: (n - 1 - affine).
// `rolling`: rollout_work(n) numbers apart from `work`, or null where they stand at its end.
// `noise` is the relative error of the Gram matrix in units of fp64 sums. `gram` may be `work`
// itself, which is then overwritten; `reload()` has to bring G there once more, if it is called.
template <class L, class Reload = NothingToReload>
KOOPCORE_HD CompanionFit<L>
fit_companion(const typename L::Real *gram, int n, bool affine, int holdout,
              typename L::Real *coefficients, typename L::Real *work,
              typename L::Real *rolling = nullptr, double noise = 1.0, Reload &&reload = {}) {
  using Real = typename L::Real;
  const int first = affine ? 1 : 0;
  const int columns = n - 1 - first;
  const int rows = columns + 1;
  Real *factor = work, *scale = factor + packed_size(n);
  Real *products = scale + n;                        // (4 n) of the factorization, then:
  Real *shorter = products, *weights = products + n; // (n) and (2 n)
  Real *rolled = rolling == nullptr ? products + 4 * n : rolling;

  const Real newest = gram[packed_index(n - 1, n - 1)];
  Real square = L::broadcast(0.0); // ‖F‖² in its basis
  for (int i = 0; i < rows; ++i) {
    const Real own = gram[packed_index(first + i, first + i)];
    scale[i] = L::power_of_two_scale(own);
    if (i < columns)
      square += own;
  }
  for (int i = 0; i < rows; ++i) // in place an entry is read before it is written over
    for (int j = 0; j <= i; ++j)
      factor[packed_index(i, j)] = gram[packed_index(first + i, first + j)] * (scale[i] * scale[j]);

  CompanionFit<L> fit;
  fit.rank = cholesky<L>(factor, rows, columns, products, noise);
  const Real zero = L::broadcast(0.0), infinity = L::broadcast(HUGE_VAL);
  typename L::Mask whole = fit.rank > columns - 0.5;
  whole = L::both(whole, L::both(square > kLeastSquare, square < kGreatestSquare));
  whole = L::both(whole, newest < kGreatestSquare);

  const Real floor = square * near_cut_off(columns);
  Real largest = zero, smallest = infinity;
  for (int k = 0; k < columns; ++k) {
    const Real d = factor[packed_index(k, k)];
    largest = L::max(largest, d);
    smallest = L::select(d < smallest, d, smallest);
    whole = L::both(whole, d > floor * (scale[k] * scale[k]));
  }
  whole = L::both(whole, (noise * kLeastEigenvalue) * reach<L>(factor, columns, shorter) < columns);
  if (columns > 0)
    fit.rank = L::select(whole, fit.rank, -L::max(-fit.rank, L::broadcast(1.0 - columns)));
  fit.condition = L::select(whole, L::sqrt(largest / smallest), infinity);
  const Real rest = factor[packed_index(columns, columns)];
  fit.residual = L::select(whole, L::sqrt(rest) / scale[columns], zero);

  recurrence<L>(factor, scale, columns, affine, coefficients);
  for (int i = 0; i < columns; ++i)
    coefficients[i] = L::select(whole, coefficients[i], zero);

  fit.hindcast = L::broadcast(NAN);
  if (holdout > 0 && holdout < columns && L::any(whole)) {
    const int kept = columns - holdout;
    recurrence<L>(factor, scale, kept, affine, shorter);
    const std::int64_t horizon = holdout;
    rollout<L>(shorter, kept, affine, &horizon, 1, weights, rolled,
               [](int, const Real *, const Real &) {});
    reload();
    fit.hindcast = L::select(whole, hindcast_error<L>(gram, n, holdout, weights), fit.hindcast);
  }
  return fit;
}

} // namespace koopcore
