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

KOOPCORE_HD static constexpr int first_basis_work(int m) {
  const int any = 2 * m * m + 6 * m, natural = natural_size(m) + 4 * m;
  return any > natural ? any : natural;
}
KOOPCORE_HD static constexpr int second_pass_work(int m) {
  const int again = 10 * m * m + m, first = first_basis_work(m);
  return again > first ? again : first;
}

// v (m × m) <- a basis in which the rows of F with C = Σ f fᵀ, whose lower triangle is read, are
// nearly orthonormal: in natural order where the rank is surely full, or by diagonal pivoting down
// into the noise, whose directions the second pass sorts out. `condition` estimates cond(F).
// back (m × m), or null, by pivoting alone: the inverse of V, transposed, so that f = back y.
// work: first_basis_work(m).
template <class L>
KOOPCORE_HD void first_basis(const typename L::Real *c, int m, bool natural, typename L::Real *v,
                             typename L::Real &condition, typename L::Real *work,
                             typename L::Real *back = nullptr) {
  using Real = typename L::Real;
  Real rank = L::broadcast(0.0);
  if (natural) {
    const NaturalFactor<L> factor = natural_factor_at<L>(work, m);
    rank = factor_natural<L>(c, 0.0, factor, condition, work + natural_size(m));
    natural_whitener<L>(factor, v);
  }
  const typename L::Mask apart = rank < m - 0.5;
  if (!L::any(apart))
    return;
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
  Real largest, smallest, square = L::broadcast(0.0);
  const Real found = pivoted_cholesky<L>(a, m, weight, factor, largest, smallest, picks, rest);
  rank = L::select(apart, found, rank);
  whitener_of_pivots<L>(factor, m, picks, a, rest);
  for (int i = 0; back != nullptr && i < m; ++i)
    for (int k = 0; k < m; ++k) {
      const typename L::Mask here = L::both(picks[k] > i - 0.5, picks[k] < i + 0.5);
      const typename L::Mask noise = L::both(here, rank < k + 0.5);
      const Real entry = L::select(noise, L::broadcast(0x1p-26), factor[i * m + k]);
      back[i * m + k] = entry / scale[i];
    }
  for (int i = 0; i < m; ++i)
    for (int k = 0; k < m; ++k) {
      square += L::select(found > k + 0.5, a[i * m + k] * a[i * m + k], L::broadcast(0.0));
      v[i * m + k] = L::select(apart, a[i * m + k] * scale[i], v[i * m + k]);
    }
  const Real reach = L::sqrt(square / L::max(found, L::broadcast(1.0)));
  const Real pivoted =
      L::select(found > 0.5, L::max(largest / smallest, reach), L::broadcast(HUGE_VAL));
  condition = natural ? L::select(apart, pivoted, condition) : pivoted;
}

// The fit of groups of any rank, from T of `inverse_root` and the number of its columns, by the
// singular values of P, of which at most `most` are kept. squares (m): Σ f_i². Returns the rank.
// work: 6 m² + m.
template <class L>
KOOPCORE_HD typename L::Real refit_any(const BasisSums<L> &sums, const typename L::Real *squares,
                                       int m, int most, const typename L::Real *root,
                                       typename L::Real rank, const ProjectionArrays<L> &to,
                                       typename L::Real *work) {
  using Real = typename L::Real;
  const int matrix = m * m;
  Real *p = work, *readout = p + matrix, *u = readout + matrix, *rest = u + matrix;
  multiply<L, Left::plain>(sums.across, root, m, m, m, p);
  multiply<L, Left::plain>(sums.change, root, m, m, m, readout);
  Real square = L::broadcast(0.0);
  for (int i = 0; i < matrix; ++i) {
    readout[i] += p[i];
    square += p[i] * p[i];
  }
  Real limit = resolved_rank<L>(p, squares, m, kResolved, rest);
  limit = L::select(limit > double(most), L::broadcast(most), limit);
  const Real scale = L::power_of_two_scale(square);
  for (int i = 0; i < matrix; ++i)
    p[i] = p[i] * scale;
  rank = leading_columns<L>(p, m, limit, rank, to.v, u, rest);
  for (int i = 0; i < matrix; ++i)
    to.v[i] = to.v[i] * scale;
  multiply<L, Left::plain>(readout, u, m, m, m, to.readout);
  return rank;
}

// The fit of a window from the diagonal of C, `squares` (m), `sums` and V (m × m) of `first_basis`.
// to.a, h and probe are not used; to.v is needed. Keeps at most `most` singular values, none within
// `rank_tolerance` of the largest, and not more than there are resolved in scaled parameters.
// Returns the rank. work: second_pass_work(m).
template <class L>
KOOPCORE_HD typename L::Real refit(const typename L::Real *squares, const BasisSums<L> &sums, int m,
                                   int most, const typename L::Real *v,
                                   const ProjectionArrays<L> &to, typename L::Real *work) {
  using Real = typename L::Real;
  const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
  const int matrix = m * m;
  Real *root = work, *readout = root + matrix, *rest = readout + matrix;
  Real rank = inverse_root<L>(sums.inner, m, root, rest);
  // Where no direction of V is left out: V T, and σ_1/σ_m is at most the product of the norms, of F
  // and of its scaled parameters.
  multiply<L, Left::plain>(v, root, m, m, m, to.v);
  Real trace = zero, inverse_square = zero, scaled = zero;
  for (int i = 0; i < m; ++i) {
    Real square = zero;
    for (int k = 0; k < m; ++k)
      square += to.v[i * m + k] * to.v[i * m + k];
    trace += squares[i];
    inverse_square += square;
    scaled += squares[i] * square;
  }
  const double cut_off = rank_tolerance(m) * rank_tolerance(m);
  const typename L::Mask far =
      L::both(trace * inverse_square * cut_off < 1.0, scaled * kResolved < 0.25);
  Real apart = L::select(L::both(rank > m - 0.5, far), zero, one);
  if (most < m)
    apart = one;
  if (L::any(apart < 0.5)) {
    for (int i = 0; i < matrix; ++i)
      rest[i] = sums.across[i] + sums.change[i];
    multiply<L, Left::plain>(rest, root, m, m, m, to.readout);
  }
  if (L::any(apart > 0.5)) {
    Real *other = rest + matrix;
    const ProjectionArrays<L> any{nullptr, nullptr, nullptr, nullptr,
                                  nullptr, rest,    other,   nullptr};
    const Real kept = refit_any<L>(sums, squares, m, most, root, rank, any, other + matrix);
    replace<L>(apart > 0.5, rest, matrix, to.readout);
    replace<L>(apart > 0.5, other, matrix, to.v);
    rank = L::select(apart > 0.5, kept, rank);
  }
  multiply<L, Left::transposed>(to.v, to.readout, m, m, m, to.k);
  multiply<L, Left::transposed>(to.v, to.g, m, m, 1, to.z);
  return rank;
}

} // namespace koopcore
