// The dense fit of one group per lane: operator K = Vᵀ H V, start z = Vᵀ g and read-out H V.
//
// Mirrors `project` in backends/reference.py: by diagonal pivoting, or first in natural order where
// the caller expects full rank: under a ridge, or for float32 snapshots. Lanes that it can factor
// keep their bits, whatever stands beside them.
#pragma once

#include "algorithms/jacobi.h"
#include "algorithms/natural.h"
#include "algorithms/product.h"
#include "algorithms/whiten.h"

namespace koopcore {

struct ProjectionModel {
  int size;     // N
  int rank;     // singular values to keep; 0 keeps all
  double ridge; // relative to the mean diagonal of the equilibrated matrix
  bool raw;     // A is in the basis [x_1, d_1 …] of columns x_k, whose singular values count
  bool natural = false; // try natural order first
};

// One group per lane: the matrices are (N × N), z is (N).
template <class L> struct ProjectionArrays {
  const typename L::Real *a, *h; // A, whose lower triangle is read, and H
  const typename L::Real *g;     // (N)
  typename L::Real *k, *z, *readout;
  typename L::Real *v;     // V, or null where it is not wanted
  typename L::Real *probe; // (N) a vector that becomes Vᵀ of itself, or null
};

KOOPCORE_HD static constexpr int pivoted_work(int size) { return 7 * size * size + 4 * size; }
KOOPCORE_HD static constexpr int projection_work(int size) {
  return natural_size(size) + 4 * size + size + size * size + pivoted_work(size);
}

// v (N × N) <- vectors with v uᵀ the pseudo-inverse of the transposed `columns` (N × N), u (N × N)
// with columns of the identity or of a rotation, of at most `most` singular values and none within
// `rank_tolerance` of the largest. The columns, at most 1 in size, are zero or linearly
// independent; those of `rank` are not zero. They are overwritten. Returns the rank. σ_1/σ_r is at
// most the product of the norms, mostly nowhere near the cut-off: then nothing is rotated. work:
// 3 N² + N.
template <class L>
KOOPCORE_HD typename L::Real leading_columns(typename L::Real *columns, int size,
                                             const typename L::Real &most, typename L::Real rank,
                                             typename L::Real *v, typename L::Real *u,
                                             typename L::Real *work) {
  using Real = typename L::Real;
  const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
  const int matrix = size * size;
  transposed_pseudo_inverse<L>(columns, size, v, work);
  const Real square = sum_of<L>(matrix, [&](int i) { return columns[i] * columns[i]; });
  const Real inverse_square = sum_of<L>(matrix, [&](int i) { return v[i] * v[i]; });
  each<L>(matrix, [&](int i) { u[i] = i % (size + 1) == 0 ? one : zero; });
  const double cut_off = rank_tolerance(size) * rank_tolerance(size);
  const typename L::Mask whole =
      L::both(square * inverse_square * cut_off < 1.0, rank < most + 0.5);
  if (!L::any(L::select(whole, zero, one) > 0.5))
    return rank;
  Real *truncated = work, *rotation = truncated + matrix;
  const Real kept = truncate<L>(columns, size, most, truncated, rotation, rotation + matrix);
  each<L>(matrix, [&](int i) {
    v[i] = L::select(whole, v[i], truncated[i]);
    u[i] = L::select(whole, u[i], rotation[i]);
  });
  return L::select(whole, rank, kept);
}

// V (N × N) with V Vᵀ = A⁺, whatever the rank, truncated to the model's. Returns the rank.
// work: pivoted_work(N).
template <class L>
KOOPCORE_HD typename L::Real whiten_pivoted(const typename L::Real *a, const ProjectionModel &model,
                                            typename L::Real *v, typename L::Real &condition,
                                            typename L::Real *work) {
  using Real = typename L::Real;
  const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
  const int size = model.size, matrix = size * size;
  Real *columns = work, *factor = columns + matrix, *inverse = factor + matrix;
  Real *u = inverse + matrix, *scale = u + matrix, *unscale = scale + size, *rest = unscale + size;
  Real trace = zero, least_scale = L::broadcast(HUGE_VAL);
  each<L>(size, [&](int i) { scale[i] = L::power_of_two_scale(a[i * size + i]); });
  for (int i = 0; i < size; ++i) {
    const typename L::Mask below = scale[i] < least_scale;
    least_scale = L::select(below, scale[i], least_scale);
  }
  each<L>(size, [&](int i) {
    for (int j = 0; j <= i; ++j)
      columns[i * size + j] = a[i * size + j] * (scale[i] * scale[j]);
    unscale[i] = least_scale / scale[i]; // at most 1: F is taken over its largest column
    rest[i] = unscale[i] * unscale[i];
  });
  for (int i = 0; i < size; ++i)
    trace += columns[i * size + i];
  const Real ridge = trace * (model.ridge / size);
  each<L>(size, [&](int i) { columns[i * size + i] += ridge; });

  // F S = Q Lᵀ, and its pseudo-inverse.
  Real largest, smallest;
  Real rank =
      pivoted_cholesky<L>(columns, size, rest, factor, largest, smallest, nullptr, rest + size);
  condition = L::select(rank > 0.5, largest / smallest, L::broadcast(HUGE_VAL));
  transposed_pseudo_inverse<L>(factor, size, inverse, rest);

  // That of F.
  each<L>(size, [&](int i) {
    for (int k = 0; k < size; ++k)
      columns[i * size + k] = factor[i * size + k] * unscale[i];
  });
  if (model.raw)
    sum_rows<L>(columns, size, false);
  const Real most = L::broadcast(model.rank > 0 ? model.rank : size);
  rank = leading_columns<L>(columns, size, most, rank, v, u, rest);

  // F V = Q u holds to the condition number of F; one correction in the scaled columns, which is
  // what the Gram matrix was factored in, makes it hold to theirs.
  if (model.raw)
    sum_rows<L>(v, size, true);
  each<L>(size, [&](int i) {
    for (int k = 0; k < size; ++k)
      v[i * size + k] = v[i * size + k] * unscale[i];
  });
  Real *missing = columns;
  multiply<L, Left::transposed>(factor, v, size, size, size, missing);
  each<L>(matrix, [&](int i) { missing[i] = u[i] - missing[i]; });
  multiply<L, Left::plain>(inverse, missing, size, size, size, u);
  each<L>(matrix, [&](int i) { v[i] = v[i] + u[i]; });
  const Real square = sum_of<L>(matrix, [&](int i) { return v[i] * v[i]; });
  each<L>(size, [&](int i) {
    for (int k = 0; k < size; ++k)
      v[i * size + k] = v[i * size + k] * scale[i];
  });
  condition = L::max(condition, L::sqrt(square / L::max(rank, one)));
  return rank;
}

template <class L>
KOOPCORE_HD void replace(const typename L::Mask &where, const typename L::Real *by, int count,
                         typename L::Real *out) {
  for (int i = 0; i < count; ++i)
    out[i] = L::select(where, by[i], out[i]);
}

// Fits the groups, one per lane, that natural order is sure to find of full rank; returns 0 for the
// others, whose numbers say nothing. work: natural_size(N) + 4 N.
template <class L>
KOOPCORE_HD typename L::Real project_natural(int size, double ridge, const ProjectionArrays<L> &to,
                                             typename L::Real &condition, typename L::Real *work) {
  using Real = typename L::Real;
  const NaturalFactor<L> natural = natural_factor_at<L>(work, size);
  Real rank = factor_natural<L>(to.a, ridge, natural, condition, work + natural_size(size));
  rank = L::select(rank > size - 0.5, rank, L::broadcast(0.0));
  if (!L::any(rank > size - 0.5))
    return rank;
  for (int i = 0; i < size * size; ++i)
    to.readout[i] = to.h[i];
  times_whitener<L>(natural, to.readout);
  transposed_whitener_times<L>(natural, to.readout, size, to.k);
  transposed_whitener_times<L>(natural, to.g, 1, to.z);
  if (to.probe != nullptr)
    transposed_whitener_times<L>(natural, to.probe, 1, to.probe);
  if (to.v != nullptr)
    natural_whitener<L>(natural, to.v);
  return rank;
}

// Fits groups of any rank by diagonal pivoting; to.v is needed, to.probe not used. Returns the
// rank. work: pivoted_work(N), where to.readout, k and z may stand as well.
template <class L>
KOOPCORE_HD typename L::Real project_pivoted(const ProjectionModel &model,
                                             const ProjectionArrays<L> &to,
                                             typename L::Real &condition, typename L::Real *work) {
  const int size = model.size;
  const typename L::Real rank = whiten_pivoted<L>(to.a, model, to.v, condition, work);
  multiply<L, Left::plain>(to.h, to.v, size, size, size, to.readout);
  multiply<L, Left::transposed>(to.v, to.readout, size, size, size, to.k);
  multiply<L, Left::transposed>(to.v, to.g, size, size, 1, to.z);
  return rank;
}

// Fits one group per lane and returns its rank; `condition` is the estimate of cond(F). work:
// projection_work(N).
template <class L>
KOOPCORE_HD typename L::Real project(const ProjectionModel &model, const ProjectionArrays<L> &to,
                                     typename L::Real &condition, typename L::Real *work) {
  using Real = typename L::Real;
  const int size = model.size, matrix = size * size;
  Real *rest = work + natural_size(size);
  Real *own = rest + 4 * size; // the probe, before natural order overwrites it
  if (to.probe != nullptr)
    for (int i = 0; i < size; ++i)
      own[i] = to.probe[i];
  const bool straight = model.natural && (model.rank < 1 || model.rank >= size);
  Real rank = L::broadcast(0.0);
  if (straight)
    rank = project_natural<L>(size, model.ridge, to, condition, work);
  const typename L::Mask apart = rank < size - 0.5;
  if (!L::any(apart))
    return rank;
  Real *v = own + size, *readout = v + matrix, *product = readout + matrix;
  Real pivoted_condition;
  const ProjectionArrays<L> other{to.a, to.h, to.g, product, product + matrix, readout, v, nullptr};
  const Real pivoted = project_pivoted<L>(model, other, pivoted_condition, readout);
  replace<L>(apart, readout, matrix, to.readout);
  replace<L>(apart, product, matrix, to.k);
  if (to.v != nullptr)
    replace<L>(apart, v, matrix, to.v);
  replace<L>(apart, other.z, size, to.z);
  if (to.probe != nullptr) {
    multiply<L, Left::transposed>(v, own, size, size, 1, product);
    replace<L>(apart, product, size, to.probe);
  }
  condition = straight ? L::select(apart, pivoted_condition, condition) : pivoted_condition;
  return L::select(apart, pivoted, rank);
}

} // namespace koopcore
