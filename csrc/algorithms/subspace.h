// The leading eigenvectors of symmetric matrices of which few are wanted, one matrix per lane.
//
// Mirrors koopcore/dmd/algebra/eigen.py: subspace iteration with Rayleigh-Ritz (Golub & Van Loan,
// section 8.2.4), with some vectors beside those that are wanted.
#pragma once

#include "algorithms/product.h"
#include "algorithms/symmetric.h"

namespace koopcore {

constexpr int kSubspaceExtra = 4, kSubspaceRounds = 12;

KOOPCORE_HD static constexpr int subspace_width(int n, int count) {
  return count + kSubspaceExtra < n ? count + kSubspaceExtra : n;
}
KOOPCORE_HD static constexpr int subspace_work(int n, int count) {
  const int w = subspace_width(n, count);
  return 3 * n * w + 2 * w * w + w + symmetric_work(w) + symmetric_rotations(w);
}

template <class L> struct Subspace {
  using Real = typename L::Real;
  using Mask = typename L::Mask;

  const Real *a; // (n × n) positive semidefinite
  int n, count, w;
  Real *y, *image, *other, *small, *turn, *ritz, *work;
  int *ends;

  KOOPCORE_HD Subspace(const Real *matrix, int size, int wanted, Real *space)
      : a(matrix), n(size), count(wanted), w(subspace_width(size, wanted)), y(space),
        image(y + n * w), other(image + n * w), small(other + n * w), turn(small + w * w),
        ritz(turn + w * w), work(ritz + w),
        ends(reinterpret_cast<int *>(work + symmetric_work(w))) {}

  // ritz (count) <- the largest eigenvalues, falling; the first columns of y (n × w) their
  // eigenvectors. Returns the lanes in which they settled.
  KOOPCORE_HD Mask run() {
    unsigned state = 1;
    for (int i = 0; i < n * w; ++i) { // any start that is not orthogonal to what is wanted
      state = state * 1664525u + 1013904223u;
      y[i] = L::broadcast(double(state >> 8) * 0x1p-24 - 0.5);
    }
    Real trace = L::broadcast(0.0);
    for (int i = 0; i < n; ++i)
      trace += a[i * n + i];
    const Real floor = L::broadcast(4.0 * n * 0x1p-52) * trace; // what is rounding of eigenvalues
    Mask settled = L::opposite(L::everywhere());
    for (int round = 0; round < kSubspaceRounds; ++round) {
      for (int twice = 0; twice < 2; ++twice) {
        multiply<L, Left::plain>(a, y, n, n, w, image);
        multiply<L, Left::plain>(a, image, n, n, w, y);
        orthonormalize();
      }
      multiply<L, Left::plain>(a, y, n, n, w, image);
      multiply<L, Left::transposed>(y, image, w, n, w, small);
      for (int i = 0; i < w; ++i)
        for (int j = 0; j < i; ++j)
          small[i * w + j] = 0.5 * (small[i * w + j] + small[j * w + i]);
      SymmetricEigen<L> eigen(small, w, work, ends);
      const Mask fine = eigen.values(ritz);
      eigen.vectors(w, turn);
      multiply<L, Left::plain>(y, turn, n, w, w, other);
      swap(y, other);
      multiply<L, Left::plain>(image, turn, n, w, w, other);
      swap(image, other);
      settled = fine;
      Real missing = trace;
      for (int k = 0; k < w; ++k)
        missing = missing - ritz[k];
      for (int k = 0; k < count; ++k) {
        Real error = L::broadcast(0.0);
        for (int i = 0; i < n; ++i)
          error = L::max(error, L::abs(image[i * w + k] - y[i * w + k] * ritz[k]));
        const Real first = 1e-11 * ritz[0], weak = 1e-2 * L::abs(ritz[k]);
        const Real near = L::select(first < weak, first, weak);
        settled = L::both(settled, L::opposite(error > L::max(near, floor)));
        // A column that was lost is zero: weak, and nothing is missing, or it has to be found.
        const Mask lost = L::both(floor > ritz[k], missing > floor);
        settled = L::both(settled, L::opposite(lost));
      }
      if (!L::any(L::opposite(settled)))
        break;
    }
    return settled;
  }

private:
  static KOOPCORE_HD void swap(Real *&p, Real *&q) {
    Real *const held = p;
    p = q;
    q = held;
  }

  // Gram and Schmidt, each column twice; what is rounding of the others becomes zero.
  KOOPCORE_HD void orthonormalize() {
    const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
    for (int k = 0; k < w; ++k) {
      Real before = zero;
      for (int i = 0; i < n; ++i)
        before += y[i * w + k] * y[i * w + k];
      for (int again = 0; again < 2; ++again)
        for (int j = 0; j < k; ++j) {
          Real sum = zero;
          for (int i = 0; i < n; ++i)
            sum += y[i * w + j] * y[i * w + k];
          for (int i = 0; i < n; ++i)
            y[i * w + k] = y[i * w + k] - sum * y[i * w + j];
        }
      Real square = zero;
      for (int i = 0; i < n; ++i)
        square += y[i * w + k] * y[i * w + k];
      const Mask some = square > 1e-28 * before;
      const Real over = L::select(some, one / L::sqrt(L::select(some, square, one)), zero);
      for (int i = 0; i < n; ++i)
        y[i * w + k] = y[i * w + k] * over;
    }
  }
};

} // namespace koopcore
