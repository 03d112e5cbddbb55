// From products of snapshots to eigenvalues and amplitudes: the small algebra of dynamic mode
// decomposition, one system per lane.
//
// Mirrors koopcore/dmd/algebra/decomposition.py and dynamics.py:
// K = Pᵀ H P with P = V Σ⁻¹ of A = V Σ² Vᵀ.
#pragma once

#include "algorithms/product.h"
#include "algorithms/schur.h"
#include "algorithms/symmetric.h"

namespace koopcore {

// How many singular values a system keeps: all that are no rounding, a number of them, a share of
// the energy, or those above `value` times the median (Gavish & Donoho 2014).
enum class RankRule { all, number, energy, threshold };

struct RankModel {
  RankRule rule;
  double value;
};

// Squares below this share of the largest are rounding: a Gram matrix does not see them.
KOOPCORE_HD static constexpr double modal_floor(int n) { return 4.0 * n * 0x1p-52; }

// squares (n), falling: those of rounding become zero. Returns the rank.
template <class L>
KOOPCORE_HD typename L::Real modal_rank(typename L::Real *squares, int n, const RankModel &model) {
  using Real = typename L::Real;
  const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
  const Real least = modal_floor(n) * L::max(squares[0], zero);
  Real available = zero, energy = zero, rank = zero;
  for (int i = 0; i < n; ++i) {
    const typename L::Mask some = squares[i] > least;
    squares[i] = L::select(some, squares[i], zero);
    available += L::select(some, one, zero);
    energy += squares[i];
  }
  if (model.rule == RankRule::all)
    return available;
  if (model.rule == RankRule::number)
    return L::select(available < model.value, available, L::broadcast(model.value));
  if (model.rule == RankRule::energy) { // a sum's last digits decide nothing
    const Real wanted = (model.value - 4.0 * 0x1p-52) * energy;
    Real sum = zero;
    rank = one;
    for (int i = 0; i < n; ++i) {
      sum += squares[i];
      rank += L::select(sum < wanted, one, zero);
    }
  } else {
    const Real median = 0.5 * (L::sqrt(squares[(n - 1) / 2]) + L::sqrt(squares[n / 2]));
    for (int i = 0; i < n; ++i)
      rank += L::select(L::sqrt(squares[i]) > model.value * median, one, zero);
    rank = L::max(rank, one);
  }
  return L::select(rank < available, rank, available);
}

// The least squared sine between a column of unit length and those before it that normal equations
// bear: STEEP of koopcore/dmd/algebra/dynamics.py.
KOOPCORE_HD static constexpr double modal_steep() { return 1e-7; }

// Solutions b (r) of gram b = right, gram (r × r) Hermitian: equilibrated, with one step of
// refinement. gram is scaled in place; rows that are zero have b = 0. factor: r² complex numbers;
// work: 5 r.
template <class L> struct HermitianSolver {
  using Real = typename L::Real;
  using Complex = ComplexOf<L>;

  Complex *gram, *factor, *x;
  int r;
  Real *over;
  Real least; // squared sine between a column of unit length and those before it

  KOOPCORE_HD HermitianSolver(Complex *matrix, int size, Complex *space, Real *work)
      : gram(matrix), factor(space), x(reinterpret_cast<Complex *>(work)), r(size),
        over(work + 2 * size), least(L::broadcast(1.0)) {
    const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
    for (int i = 0; i < r; ++i) {
      const Real square = gram[i * r + i].re;
      const typename L::Mask some = square > 0.0;
      over[i] = L::select(some, one / L::sqrt(L::select(some, square, one)), zero);
    }
    for (int i = 0; i < r; ++i)
      for (int j = 0; j < r; ++j)
        gram[i * r + j] = (over[i] * over[j]) * gram[i * r + j];
    for (int j = 0; j < r; ++j) // Cholesky's factor, the inverse of its diagonal in place of it
      for (int i = j; i < r; ++i) {
        Complex sum = gram[i * r + j];
        for (int k = 0; k < j; ++k)
          sum = sum - factor[i * r + k] * conjugate<L>(factor[j * r + k]);
        if (i == j) {
          const Real sine = L::select(over[i] > 0.0, sum.re, one);
          least = L::select(sine < least, sine, least);
          const Real pivot = L::select(over[i] > 0.0, sum.re + 8.0 * r * 0x1p-52, one);
          factor[j * r + j] = {one / L::sqrt(L::max(pivot, L::broadcast(r * 0x1p-52))), zero};
        } else {
          factor[i * r + j] = factor[j * r + j].re * sum;
        }
      }
  }

  KOOPCORE_HD void solve(const Complex *right, Complex *b) {
    const Real zero = L::broadcast(0.0);
    for (int i = 0; i < r; ++i) {
      x[i] = over[i] * right[i];
      b[i] = {zero, zero};
    }
    for (int round = 0; round < 2; ++round) { // x: the target, then what is missing of it
      for (int i = 0; i < r; ++i) {
        for (int k = 0; k < i; ++k)
          x[i] = x[i] - factor[i * r + k] * x[k];
        x[i] = factor[i * r + i].re * x[i];
      }
      for (int i = r - 1; i >= 0; --i) {
        for (int k = i + 1; k < r; ++k)
          x[i] = x[i] - conjugate<L>(factor[k * r + i]) * x[k];
        x[i] = factor[i * r + i].re * x[i];
      }
      for (int i = 0; i < r; ++i)
        b[i] = b[i] + x[i];
      for (int i = 0; round == 0 && i < r; ++i) {
        Complex missing = over[i] * right[i];
        for (int j = 0; j < r; ++j)
          missing = missing - gram[i * r + j] * b[j];
        x[i] = missing;
      }
    }
    for (int i = 0; i < r; ++i)
      b[i] = over[i] * b[i];
  }
};

// The eigenvalues, eigenvectors and kinds of a Schur decomposition in the order of falling |λ|,
// those of a pair next to each other; lanes' columns past `rank` come last. All (r) or (r × r);
// vectors as the real numbers [Re w₁, …]: of a pair Re w and Im w. work: r.
template <class L>
KOOPCORE_HD void sort_modes(ComplexOf<L> *values, const ComplexOf<L> *vectors,
                            typename L::Real *pair, const typename L::Real &rank, int r,
                            typename L::Real *columns, typename L::Real *work) {
  using Real = typename L::Real;
  Real *key = work;
  for (int k = 0; k < r; ++k)
    key[k] = L::select(rank > k + 0.5, square_of<L>(values[k]), L::broadcast(-1.0));
  for (int i = 0; i < r; ++i)
    for (int k = 0; k < r; ++k) {
      Real entry = vectors[i * r + k].re;
      if (k > 0)
        entry = L::select(pair[k] > 1.5, vectors[i * r + k - 1].im, entry);
      columns[i * r + k] = entry;
    }
  for (int end = r - 1; end > 0; --end)
    for (int k = 0; k < end; ++k) {
      const typename L::Mask swap = key[k] < key[k + 1];
      if (!L::any(swap))
        continue;
      const auto exchange = [&](Real &a, Real &b) {
        const Real x = a, y = b;
        a = L::select(swap, y, x);
        b = L::select(swap, x, y);
      };
      exchange(key[k], key[k + 1]);
      exchange(pair[k], pair[k + 1]);
      exchange(values[k].re, values[k + 1].re);
      exchange(values[k].im, values[k + 1].im);
      for (int i = 0; i < r; ++i)
        exchange(columns[i * r + k], columns[i * r + k + 1]);
    }
}

// Re and Im of column k of what a real matrix makes of the columns of `sort_modes`: c (r) a row.
template <class L>
KOOPCORE_HD ComplexOf<L> mode_entry(const typename L::Real *c, const typename L::Real *pair, int k,
                                    int r) {
  using Real = typename L::Real;
  const Real zero = L::broadcast(0.0);
  const typename L::Mask first = L::both(pair[k] > 0.5, pair[k] < 1.5), second = pair[k] > 1.5;
  Real re = c[k], im = zero;
  if (k + 1 < r)
    im = L::select(first, c[k + 1], im);
  if (k > 0) {
    re = L::select(second, c[k - 1], re);
    im = L::select(second, -c[k], im);
  }
  return {re, im};
}

} // namespace koopcore
