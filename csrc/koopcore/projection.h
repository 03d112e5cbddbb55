// The dense fit of one group per lane: whitener V, operator K = Vᵀ H V and start z = Vᵀ g.
//
// Mirrors `project` in backends/reference.py.
#pragma once

#include "koopcore/jacobi.h"
#include "koopcore/whiten.h"

namespace koopcore {

struct ProjectionModel {
  int size;     // N
  int rank;     // singular values to keep; 0 keeps all
  double ridge; // relative to the mean diagonal of the equilibrated matrix
  bool raw;     // A is in the basis [x_1, d_1, …]; `rank` counts singular values of [x_1, x_2, …]
};

KOOPCORE_HD static constexpr int projection_work(int size) { return 2 * size * size + 5 * size; }

// V (N × N) with V Vᵀ = A⁺ from a (N × N, overwritten). Returns the rank per lane; `condition` is
// the estimate of cond(F). work: projection_work(N).
template <class L>
KOOPCORE_HD typename L::Real whiten(typename L::Real *a, const ProjectionModel &model,
                                    typename L::Real *v, typename L::Real &condition,
                                    typename L::Real *work) {
  using Real = typename L::Real;
  const int size = model.size;
  const Real zero = L::broadcast(0.0);
  Real *factor = work, *scale = factor + size * size, *order = scale + size;
  Real *rest = order + size;
  Real trace = zero;
  for (int i = 0; i < size; ++i)
    scale[i] = L::power_of_two_scale(a[i * size + i]);
  for (int i = 0; i < size; ++i)
    for (int j = 0; j < size; ++j)
      a[i * size + j] = a[i * size + j] * (scale[i] * scale[j]);
  for (int i = 0; i < size; ++i)
    trace += a[i * size + i];
  for (int i = 0; i < size; ++i)
    a[i * size + i] += trace * (model.ridge / size);

  Real largest, smallest;
  Real rank = pivoted_cholesky<L>(a, size, factor, order, largest, smallest, rest);
  const Real infinity = L::broadcast(HUGE_VAL);
  condition = L::select(rank > 0.5, largest / smallest, infinity);

  invert_factor<L>(factor, order, size, v, rest);
  const typename L::Mask deficient = rank < size - 0.5;
  if (L::any(deficient)) { // full lanes keep their bits, whatever stands beside them
    pseudo_inverse_factor<L>(factor, order, size, a, rest);
    for (int i = 0; i < size * size; ++i)
      v[i] = L::select(deficient, a[i], v[i]);
  }
  for (int i = 0; i < size; ++i)
    for (int k = 0; k < size; ++k)
      v[i * size + k] *= scale[i];
  const typename L::Mask cut = rank > model.rank + 0.5;
  if (model.rank < 1 || !L::any(cut))
    return rank;

  for (int i = 0; i < size; ++i)
    for (int k = 0; k < size; ++k)
      factor[i * size + k] = factor[i * size + k] / scale[i];
  Real *truncated = a; // no longer needed
  truncate<L>(factor, size, model.rank, model.raw, truncated, rest);
  for (int i = 0; i < size * size; ++i)
    v[i] = L::select(cut, truncated[i], v[i]);
  return L::select(cut, L::broadcast(double(model.rank)), rank);
}

// k (N × N) = Vᵀ H V and z (N) = Vᵀ g. work: N².
template <class L>
KOOPCORE_HD void project_operator(const typename L::Real *v, const typename L::Real *h,
                                  const typename L::Real *g, int size, typename L::Real *k,
                                  typename L::Real *z, typename L::Real *work) {
  using Real = typename L::Real;
  const Real zero = L::broadcast(0.0);
  for (int i = 0; i < size; ++i) // H V
    for (int j = 0; j < size; j += 4) {
      Real s[4] = {zero, zero, zero, zero};
      const int width = size - j < 4 ? size - j : 4;
      if (width == 4)
        for (int l = 0; l < size; ++l)
          for (int c = 0; c < 4; ++c)
            s[c] += h[i * size + l] * v[l * size + j + c];
      else
        for (int c = 0; c < width; ++c)
          for (int l = 0; l < size; ++l)
            s[c] += h[i * size + l] * v[l * size + j + c];
      for (int c = 0; c < width; ++c)
        work[i * size + j + c] = s[c];
    }
  for (int i = 0; i < size; ++i) { // Vᵀ (H V)
    for (int j = 0; j < size; j += 4) {
      Real s[4] = {zero, zero, zero, zero};
      const int width = size - j < 4 ? size - j : 4;
      if (width == 4)
        for (int l = 0; l < size; ++l)
          for (int c = 0; c < 4; ++c)
            s[c] += v[l * size + i] * work[l * size + j + c];
      else
        for (int c = 0; c < width; ++c)
          for (int l = 0; l < size; ++l)
            s[c] += v[l * size + i] * work[l * size + j + c];
      for (int c = 0; c < width; ++c)
        k[i * size + j + c] = s[c];
    }
    Real s = zero;
    for (int l = 0; l < size; ++l)
      s += v[l * size + i] * g[l];
    z[i] = s;
  }
}

} // namespace koopcore
