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
  bool raw;     // A is in the basis [x_1, d_1, …]; `rank` counts singular values of [x_1, x_2, …]
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

KOOPCORE_HD static constexpr int pivoted_work(int size) { return 3 * size * size + 4 * size; }
KOOPCORE_HD static constexpr int projection_work(int size) {
  return natural_size(size) + 4 * size + size + size * size + pivoted_work(size);
}

// V (N × N) with V Vᵀ = A⁺, whatever the rank, truncated to the model's. Returns the rank.
// work: pivoted_work(N).
template <class L>
KOOPCORE_HD typename L::Real whiten_pivoted(const typename L::Real *a, const ProjectionModel &model,
                                            typename L::Real *v, typename L::Real &condition,
                                            typename L::Real *work) {
  using Real = typename L::Real;
  const int size = model.size;
  Real *scaled = work, *factor = scaled + size * size, *scale = factor + size * size;
  Real *order = scale + size, *rest = order + size;
  Real trace = L::broadcast(0.0);
  for (int i = 0; i < size; ++i)
    scale[i] = L::power_of_two_scale(a[i * size + i]);
  for (int i = 0; i < size; ++i) {
    for (int j = 0; j <= i; ++j)
      scaled[i * size + j] = scaled[j * size + i] = a[i * size + j] * (scale[i] * scale[j]);
    trace += scaled[i * size + i];
  }
  for (int i = 0; i < size; ++i)
    scaled[i * size + i] += trace * (model.ridge / size);

  Real largest, smallest;
  const Real rank = pivoted_cholesky<L>(scaled, size, factor, order, largest, smallest, rest);
  condition = L::select(rank > 0.5, largest / smallest, L::broadcast(HUGE_VAL));
  pseudo_inverse_factor<L>(factor, order, size, v, rest);
  for (int i = 0; i < size; ++i)
    for (int k = 0; k < size; ++k)
      v[i * size + k] = v[i * size + k] * scale[i];
  const typename L::Mask cut = rank > model.rank + 0.5;
  if (model.rank < 1 || !L::any(cut))
    return rank;
  for (int i = 0; i < size; ++i)
    for (int k = 0; k < size; ++k)
      factor[i * size + k] = factor[i * size + k] / scale[i];
  Real *truncated = scaled; // no longer needed
  truncate<L>(factor, size, model.rank, model.raw, truncated, rest);
  for (int i = 0; i < size * size; ++i)
    v[i] = L::select(cut, truncated[i], v[i]);
  return L::select(cut, L::broadcast(double(model.rank)), rank);
}

template <class L>
KOOPCORE_HD void replace(const typename L::Mask &where, const typename L::Real *by, int count,
                         typename L::Real *out) {
  for (int i = 0; i < count; ++i)
    out[i] = L::select(where, by[i], out[i]);
}

// Fits one group per lane and returns its rank; `condition` is the estimate of cond(F). work:
// projection_work(N).
template <class L>
KOOPCORE_HD typename L::Real project(const ProjectionModel &model, const ProjectionArrays<L> &to,
                                     typename L::Real &condition, typename L::Real *work) {
  using Real = typename L::Real;
  const int size = model.size, matrix = size * size;
  const NaturalFactor<L> natural = natural_factor_at<L>(work, size);
  Real *rest = work + natural_size(size);
  bool straight = model.natural && (model.rank < 1 || model.rank >= size);
  Real rank = L::broadcast(0.0);
  if (straight) {
    rank = factor_natural<L>(to.a, model.ridge, natural, condition, rest);
    straight = L::any(rank > size - 0.5);
  }
  const typename L::Mask apart = rank < size - 0.5;
  Real *own = rest + 4 * size; // the probe, before natural order overwrites it
  if (to.probe != nullptr)
    for (int i = 0; i < size; ++i)
      own[i] = to.probe[i];
  if (straight) {
    for (int i = 0; i < matrix; ++i)
      to.readout[i] = to.h[i];
    times_whitener<L>(natural, to.readout);
    transposed_whitener_times<L>(natural, to.readout, size, to.k);
    transposed_whitener_times<L>(natural, to.g, 1, to.z);
    if (to.probe != nullptr)
      transposed_whitener_times<L>(natural, to.probe, 1, to.probe);
    if (to.v != nullptr)
      natural_whitener<L>(natural, to.v);
    if (!L::any(apart))
      return rank;
  }
  Real *v = own + size, *readout = v + matrix, *product = readout + matrix;
  Real pivoted_condition;
  const Real pivoted = whiten_pivoted<L>(to.a, model, v, pivoted_condition, readout);
  multiply<L, Left::plain>(to.h, v, size, size, size, readout);
  multiply<L, Left::transposed>(v, readout, size, size, size, product);
  replace<L>(apart, readout, matrix, to.readout);
  replace<L>(apart, product, matrix, to.k);
  if (to.v != nullptr)
    replace<L>(apart, v, matrix, to.v);
  multiply<L, Left::transposed>(v, to.g, size, size, 1, product);
  replace<L>(apart, product, size, to.z);
  if (to.probe != nullptr) {
    multiply<L, Left::transposed>(v, own, size, size, 1, product);
    replace<L>(apart, product, size, to.probe);
  }
  condition = straight ? L::select(apart, pivoted_condition, condition) : pivoted_condition;
  return L::select(apart, pivoted, rank);
}

} // namespace koopcore
