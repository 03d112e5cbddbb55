// The fit of one group per lane from a second pass over its snapshots, in the basis of a first one.
//
// Mirrors `feature_projection` in backends/second_pass.py. A matrix of moments C = Σ f fᵀ squares
// cond(F), but finds a basis V in which the columns y = Vᵀf are nearly orthonormal. Sums of
// products with y are as accurate as an orthogonal factorization of F: with T of (Σ y yᵀ)⁻¹ = T Tᵀ,
// Q = (y)ᵀT has orthonormal columns, P = F Q and E = F' Q.
#pragma once

#include "algorithms/projection.h"

namespace koopcore {

// Sums of one group per lane, each (m × m): Σ y yᵀ, of which the lower triangle is enough, Σ f yᵀ
// and Σ (f' - f) yᵀ.
template <class L> struct BasisSums {
  typename L::Real *inner, *across, *change;
};

KOOPCORE_HD static constexpr int second_pass_work(int m) {
  const int whole = 3 * m * m + m + projection_work(m), any = 10 * m * m + 2 * m;
  return whole > any ? whole : any;
}

KOOPCORE_HD static constexpr int first_basis_work(int m) {
  const int any = 2 * m * m + 6 * m, natural = natural_size(m) + 4 * m;
  return any > natural ? any : natural;
}

// v (m × m) <- a basis in which the rows of F with C = Σ f fᵀ, whose lower triangle is read, are
// nearly orthonormal, and the rank: in natural order where it is surely full, or by diagonal
// pivoting. `condition` estimates cond(F), `reach` the ratio of its singular values. work:
// first_basis_work(m).
template <class L>
KOOPCORE_HD typename L::Real first_basis(const typename L::Real *c, int m, bool natural,
                                         typename L::Real *v, typename L::Real &condition,
                                         typename L::Real &reach, typename L::Real *work) {
  using Real = typename L::Real;
  Real rank = L::broadcast(0.0), trace = rank;
  if (natural) {
    const NaturalFactor<L> factor = natural_factor_at<L>(work, m);
    rank = factor_natural<L>(c, 0.0, factor, condition, work + natural_size(m));
    natural_whitener<L>(factor, v);
  }
  const typename L::Mask apart = rank < m - 0.5;
  if (L::any(apart)) {
    Real *a = work, *factor = a + m * m, *scale = factor + m * m, *weight = scale + m;
    Real *picks = weight + m, *rest = picks + m, least = L::broadcast(HUGE_VAL);
    for (int i = 0; i < m; ++i) {
      scale[i] = L::power_of_two_scale(c[i * m + i]);
      least = L::select(scale[i] < least, scale[i], least);
    }
    for (int i = 0; i < m; ++i) {
      weight[i] = least / scale[i];
      weight[i] = weight[i] * weight[i];
      for (int j = 0; j <= i; ++j)
        a[i * m + j] = c[i * m + j] * (scale[i] * scale[j]);
    }
    Real largest, smallest;
    const Real pivots = pivoted_cholesky<L>(a, m, weight, factor, largest, smallest, picks, rest);
    whitener_of_pivots<L>(factor, m, picks, a, rest);
    for (int i = 0; i < m; ++i)
      for (int k = 0; k < m; ++k)
        v[i * m + k] = L::select(apart, a[i * m + k] * scale[i], v[i * m + k]);
    const Real ratio = L::select(pivots > 0.5, largest / smallest, L::broadcast(HUGE_VAL));
    condition = natural ? L::select(apart, ratio, condition) : ratio;
    rank = L::select(apart, pivots, rank);
  }
  reach = L::broadcast(0.0);
  for (int i = 0; i < m; ++i) {
    trace += c[i * m + i];
    for (int k = 0; k < m; ++k)
      reach += v[i * m + k] * v[i * m + k];
  }
  reach = L::sqrt(trace * reach);
  return rank;
}

// t (m × m) <- upper triangular T with Tᵀ A T = 1, by the Cholesky factorization of the symmetric
// A, which is near the identity except where a direction was rounding in the first pass: a column
// of less than 1/1000 beside the others is left out, as a column of zeros. The lower triangle of
// `a` is read. Returns how many columns are not zero. work: m².
template <class L>
KOOPCORE_HD typename L::Real inverse_root(const typename L::Real *a, int m, typename L::Real *t,
                                          typename L::Real *work) {
  using Real = typename L::Real;
  const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
  Real *factor = work, greatest = zero, count = zero;
  for (int i = 0; i < m; ++i)
    greatest = L::max(greatest, a[i * m + i]);
  for (int k = 0; k < m; ++k) {
    Real *row = factor + k * m;
    Real pivot = a[k * m + k];
    for (int j = 0; j < k; ++j) {
      Real x = a[k * m + j];
      for (int i = 0; i < j; ++i)
        x -= row[i] * factor[j * m + i];
      row[j] = x * t[j * m + j]; // 1/l_jj, or 0
      pivot -= row[j] * row[j];
    }
    const typename L::Mask some = pivot > greatest * 0x1p-20;
    count += L::select(some, one, zero);
    const Real inverse = L::select(some, 1.0 / L::sqrt(L::select(some, pivot, one)), zero);
    for (int j = 0; j < k; ++j) {
      Real x = zero;
      for (int i = j; i < k; ++i)
        x -= row[i] * t[j * m + i];
      t[j * m + k] = x * inverse;
      t[k * m + j] = zero;
    }
    t[k * m + k] = inverse;
  }
  return count;
}

// The fit from `sums` and V (m × m), which is replaced by the V of the fit, where the first pass
// found full rank: no direction has to be found again. g (m): the vector that starts a rollout.
template <class L>
KOOPCORE_HD typename L::Real refit_whole(const BasisSums<L> &sums, int m, const typename L::Real *v,
                                         const ProjectionArrays<L> &to, typename L::Real *work) {
  using Real = typename L::Real;
  Real *readout = work, *h = readout + m * m, *root = h + m * m, *g = root + m * m;
  for (int i = 0; i < m * m; ++i)
    readout[i] = sums.across[i] + sums.change[i];
  multiply<L, Left::transposed>(v, readout, m, m, m, h);
  multiply<L, Left::transposed>(v, to.g, m, m, 1, g);
  Real condition;
  const ProjectionModel model{m, 0, 0.0, false, true};
  const ProjectionArrays<L> inner{sums.inner, h, g, to.k, to.z, to.readout, root, nullptr};
  const Real rank = project<L>(model, inner, condition, g + m);
  multiply<L, Left::plain>(readout, root, m, m, m, to.readout);
  multiply<L, Left::plain>(v, root, m, m, m, to.v);
  return rank;
}

// The same for any rank, by the singular values of P, of which at most `most` are kept (0: all).
template <class L>
KOOPCORE_HD typename L::Real refit_any(const BasisSums<L> &sums, int m, int most,
                                       const ProjectionArrays<L> &to, typename L::Real *work) {
  using Real = typename L::Real;
  const Real zero = L::broadcast(0.0);
  const int matrix = m * m;
  Real *root = work, *p = root + matrix, *readout = p + matrix, *u = readout + matrix;
  Real *rest = u + matrix;
  Real rank = inverse_root<L>(sums.inner, m, root, rest);
  multiply<L, Left::plain>(sums.across, root, m, m, m, p);
  multiply<L, Left::plain>(sums.change, root, m, m, m, readout);
  Real square = zero;
  for (int i = 0; i < matrix; ++i) {
    readout[i] += p[i];
    square += p[i] * p[i];
  }
  const Real scale = L::power_of_two_scale(square);
  for (int i = 0; i < matrix; ++i)
    p[i] = p[i] * scale;
  rank = leading_columns<L>(p, m, most, rank, to.v, u, rest);
  for (int i = 0; i < matrix; ++i)
    to.v[i] = to.v[i] * scale;
  multiply<L, Left::plain>(readout, u, m, m, m, to.readout);
  multiply<L, Left::transposed>(to.v, to.readout, m, m, m, to.k);
  multiply<L, Left::transposed>(to.v, to.g, m, m, 1, to.z);
  return rank;
}

// The fit of a window from `sums` and `first_basis`: V (m × m) and what it returned. to.a, h and
// probe are not used; to.v is needed. Keeps at most `most` singular values (0: all), and none
// within `rank_tolerance` of the largest. Returns the rank. work: second_pass_work(m).
template <class L>
KOOPCORE_HD typename L::Real refit(const BasisSums<L> &sums, int m, int most,
                                   const typename L::Real *v, const typename L::Real &first_rank,
                                   const typename L::Real &reach, const ProjectionArrays<L> &to,
                                   typename L::Real *work) {
  using Real = typename L::Real;
  const int matrix = m * m;
  Real all = L::broadcast(0.0); // of the lanes that are done: full rank
  if (most < 1 || most >= m) {
    const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
    const Real whole =
        L::select(L::both(first_rank > m - 0.5, reach * rank_tolerance(m) < 1.0), one, zero);
    if (L::any(whole > 0.5))
      all = L::select(whole > 0.5, refit_whole<L>(sums, m, v, to, work), zero);
    if (!L::any(whole < 0.5))
      return all;
  }
  const typename L::Mask apart = all < 0.5;
  Real *k = work, *readout = k + matrix, *other = readout + matrix, *z = other + matrix;
  const ProjectionArrays<L> any{nullptr, nullptr, to.g, k, z, readout, other, nullptr};
  const Real rank = refit_any<L>(sums, m, most, any, z + m);
  replace<L>(apart, k, matrix, to.k);
  replace<L>(apart, readout, matrix, to.readout);
  replace<L>(apart, other, matrix, to.v);
  replace<L>(apart, z, m, to.z);
  return L::select(apart, rank, all);
}

} // namespace koopcore
