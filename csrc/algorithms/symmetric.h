// Eigenvalues of symmetric matrices, and the eigenvectors of the largest ones, one group per lane.
//
// Householder's tridiagonal form and implicit QL steps (Golub & Van Loan, section 8.3). The
// rotations are written down; once the eigenvalues are known, only the vectors that are wanted are
// taken back through them.
#pragma once

#include "algorithms/lanes.h"

namespace koopcore {

// Rotations that are written down: two or three times what a matrix takes.
KOOPCORE_HD static constexpr int symmetric_rotations(int n) { return 3 * n * n + 16; }
KOOPCORE_HD static constexpr int symmetric_work(int n) {
  return 6 * n + 2 * symmetric_rotations(n);
}

// The two halves of an eigendecomposition, and what passes between them.
template <class L> struct SymmetricEigen {
  using Real = typename L::Real;
  using Mask = typename L::Mask;

  Real *a; // (n × n) the matrix; then its reflections, in the columns below the diagonal
  int n;
  Real *work; // symmetric_work(n)
  int *first; // (symmetric_rotations(n)) where each sweep ended

  KOOPCORE_HD SymmetricEigen(Real *matrix, int size, Real *space, int *ends)
      : a(matrix), n(size), work(space), first(ends) {}

  // values (n) <- all eigenvalues, falling. Returns the lanes in which they were found: all, but
  // for matrices that are not finite.
  KOOPCORE_HD Mask values(Real *values) {
    tridiagonal();
    const Mask fine = iterate();
    Real *d = work, *order = work + 2 * n;
    for (int i = 0; i < n; ++i)
      order[i] = L::broadcast(double(i));
    for (int end = n - 1; end > 0; --end) // exchanges of neighbours
      for (int i = 0; i < end; ++i) {
        const Mask swap = d[i] < d[i + 1];
        const Real x = d[i], y = d[i + 1], p = order[i], q = order[i + 1];
        d[i] = L::select(swap, y, x);
        d[i + 1] = L::select(swap, x, y);
        order[i] = L::select(swap, q, p);
        order[i + 1] = L::select(swap, p, q);
      }
    for (int i = 0; i < n; ++i)
      values[i] = d[i] * unscale();
    return fine;
  }

  // v (n × count) <- orthonormal eigenvectors of the largest `count` eigenvalues.
  KOOPCORE_HD void vectors(int count, Real *v) const {
    const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
    const Real *order = work + 2 * n;
    for (int i = 0; i < n; ++i)
      for (int k = 0; k < count; ++k)
        v[i * count + k] = L::select(L::both(order[k] > i - 0.5, order[k] < i + 0.5), one, zero);
    int k = 0;
    for (; k + 4 <= count; k += 4)
      rotate<4>(v + k, count);
    if (count - k == 3)
      rotate<3>(v + k, count);
    else if (count - k == 2)
      rotate<2>(v + k, count);
    else if (count - k == 1)
      rotate<1>(v + k, count);
    for (int k = n - 3; k >= 0; --k)
      for (int j = 0; j < count; ++j) {
        Real sum = zero;
        for (int i = k + 1; i < n; ++i)
          sum += a[i * n + k] * v[i * count + j];
        for (int i = k + 1; i < n; ++i)
          v[i * count + j] = v[i * count + j] - sum * a[i * n + k];
      }
  }

private:
  int rotations_ = 0, sweeps_ = 0;

  // All rotations, the last one first, of K vectors, rows `width` apart.
  template <int K> KOOPCORE_HD void rotate(Real *v, int width) const {
    const Real *turn = work + 6 * n + 2 * rotations_;
    for (int sweep = sweeps_ - 1; sweep >= 0; --sweep) {
      Real *x = v + first[sweep] * width;
      Real upper[K]; // what a rotation leaves in its lower row is the upper row of the next
      KOOPCORE_UNROLL
      for (int k = 0; k < K; ++k)
        upper[k] = x[k];
      for (int i = first[sweep]; i < n - 1; ++i, x += width) {
        turn -= 2;
        const Real c = turn[0], s = turn[1];
        KOOPCORE_UNROLL
        for (int k = 0; k < K; ++k) {
          const Real lower = x[width + k];
          x[k] = c * upper[k] + s * lower;
          upper[k] = c * lower - s * upper[k];
        }
      }
      KOOPCORE_UNROLL
      for (int k = 0; k < K; ++k)
        x[k] = upper[k];
    }
  }

  KOOPCORE_HD Real unscale() const { return work[5 * n]; }

  // d, e <- the tridiagonal form of the matrix scaled to a trace near one.
  KOOPCORE_HD void tridiagonal() {
    const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
    Real *d = work, *e = work + n, *p = work + 3 * n;
    Real trace = zero;
    for (int i = 0; i < n; ++i)
      trace += L::abs(a[i * n + i]);
    const Real root = L::power_of_two_scale(trace), scale = root * root;
    work[5 * n] = one / scale;
    for (int i = 0; i < n; ++i)
      for (int j = 0; j <= i; ++j)
        a[i * n + j] = a[i * n + j] * scale;
    for (int k = 0; k + 2 < n; ++k) { // a <- H a H with H = 1 - v vᵀ, of which the lower triangle
      const Real head = a[(k + 1) * n + k];
      Real size = zero;
      for (int i = k + 2; i < n; ++i)
        size += a[i * n + k] * a[i * n + k];
      d[k] = a[k * n + k];
      const Mask some = size > 0.0;
      const Real length = L::select(head < 0.0, -one, one) * L::sqrt(size + head * head);
      const Real pivot = head + length;
      e[k] = L::select(some, -length, head);
      const Real over =
          L::select(some, one / L::sqrt(L::select(some, 0.5 * (size + pivot * pivot), one)), zero);
      a[(k + 1) * n + k] = pivot * over;
      for (int i = k + 2; i < n; ++i)
        a[i * n + k] = a[i * n + k] * over;
      // p = a v, then v pᵀ + p vᵀ with its share of v taken off.
      for (int i = k + 1; i < n; ++i)
        p[i] = zero;
      for (int i = k + 1; i < n; ++i) {
        const Real *row = a + i * n;
        const Real v = a[i * n + k];
        Real sum = row[i] * v;
        for (int j = k + 1; j < i; ++j) {
          sum += row[j] * a[j * n + k];
          p[j] += row[j] * v;
        }
        p[i] += sum;
      }
      Real share = zero;
      for (int i = k + 1; i < n; ++i)
        share += p[i] * a[i * n + k];
      share = 0.5 * share;
      for (int i = k + 1; i < n; ++i)
        p[i] = p[i] - share * a[i * n + k];
      for (int i = k + 1; i < n; ++i) {
        const Real v = a[i * n + k], w = p[i];
        for (int j = k + 1; j <= i; ++j)
          a[i * n + j] = a[i * n + j] - (v * p[j] + w * a[j * n + k]);
      }
    }
    if (n > 1) {
      d[n - 2] = a[(n - 2) * n + n - 2];
      e[n - 2] = a[(n - 1) * n + n - 2];
    }
    d[n - 1] = a[n * n - 1];
    e[n - 1] = zero;
  }

  // QL steps until every e is zero: what is below rounding of the whole matrix is.
  KOOPCORE_HD Mask iterate() {
    const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
    Real *d = work, *e = work + n, *cosines = work + 6 * n;
    Real norm = zero;
    for (int i = 0; i < n; ++i)
      norm = L::max(norm, L::abs(d[i]) + L::abs(e[i]));
    const Real least = norm * 0x1p-54;
    Mask fine = norm < 1e300;
    Real low = zero; // of each lane: what is before it has converged
    for (int i = 0; i < n - 1; ++i)
      e[i] = L::select(L::abs(e[i]) > least, e[i], zero);
    for (int begin = 0;;) {
      for (int i = begin; i < n - 1; ++i)
        low =
            L::select(L::both(L::equal(low, i), L::opposite(L::abs(e[i]) > zero)), low + 1.0, low);
      const Mask open = L::both(fine, low < n - 1.5);
      if (!L::any(open))
        return fine;
      if (rotations_ + n > symmetric_rotations(n))
        return L::both(fine, L::opposite(open));
      Real high = L::broadcast(n - 1.0); // of each lane's block low … high
      for (int i = n - 2; i >= begin; --i)
        high = L::select(L::both(low < i + 0.5, L::opposite(L::abs(e[i]) > zero)),
                         L::broadcast(double(i)), high);
      Real first_d = zero, next_d = zero, first_e = one;
      int start = n - 1;
      for (int i = n - 2; i >= begin; --i) {
        const Mask here = L::both(open, L::equal(low, i));
        if (!L::any(here))
          continue;
        start = i;
        first_d = L::select(here, d[i], first_d);
        next_d = L::select(here, d[i + 1], next_d);
        first_e = L::select(here, e[i], first_e);
      }
      begin = start;
      // The shift: the eigenvalue of the leading block that is next to its first entry.
      Real g = (next_d - first_d) / (2.0 * first_e);
      Real r = L::sqrt(g * g + 1.0);
      const Real offset = first_e / (g + L::select(g < 0.0, -r, r)) - first_d;
      Real s = one, c = one, p = zero;
      first[sweeps_++] = begin;
      for (int i = n - 2; i >= begin; --i) {
        const Mask below = low < i + 0.5, begins = L::equal(high, i + 1);
        const Mask inside = L::both(L::both(open, high > i + 0.5), below);
        s = L::select(begins, one, s);
        c = L::select(begins, one, c);
        p = L::select(begins, zero, p);
        g = L::select(begins, d[i + 1] + offset, g);
        const Real f = s * e[i], b = c * e[i];
        // Nowhere zero, as g is not; of a matrix of trace one this is nothing.
        const Real square = L::max(f * f + g * g, L::broadcast(1e-290));
        const Real over = L::inverse_sqrt(square);
        s = f * over;
        c = g * over;
        const Real r = square * over;
        e[i + 1] = L::select(L::both(inside, L::opposite(begins)), L::select(r > least, r, zero),
                             e[i + 1]);
        const Real before = d[i + 1] - p;
        const Real turn = (d[i] - before) * s + 2.0 * c * b;
        p = s * turn;
        d[i + 1] = L::select(inside, before + p, d[i + 1]);
        g = c * turn - (b - 1e-140);
        cosines[2 * rotations_] = L::select(inside, c, one);
        cosines[2 * rotations_ + 1] = L::select(inside, s, zero);
        ++rotations_;
        const Mask ends = L::both(inside, L::equal(low, i));
        d[i] = L::select(ends, d[i] - p, d[i]);
        e[i] = L::select(ends, L::select(L::abs(g) > least, g, zero), e[i]);
      }
    }
  }
};

} // namespace koopcore
