// Eigenvalues of symmetric matrices, and the eigenvectors of the largest ones, one group per lane.
//
// Householder's tridiagonal form; its eigenvalues by QL steps without roots (Pal, Walker & Kahan:
// Parlett, The Symmetric Eigenvalue Problem, section 8.15); then one implicit QL step for each
// vector that is wanted, shifted by its eigenvalue, which that step splits off. The rotations of
// these few steps are written down, and the vectors are taken back through them. Where a step
// splits nothing off, ordinary QL steps do it all (Golub & Van Loan, section 8.3).
#pragma once

#include "algorithms/lanes.h"

namespace koopcore {

// Rotations that are written down: two or three times what a matrix takes.
KOOPCORE_HD static constexpr int symmetric_rotations(int n) { return 3 * n * n + 16; }
KOOPCORE_HD static constexpr int symmetric_work(int n) {
  return 8 * n + n * n + 2 * symmetric_rotations(n);
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
    neglect();
    Real *squares = e() + n; // of the off-diagonal; what is left there are the eigenvalues
    Real *lambda = work + 3 * n;
    for (int i = 0; i < n; ++i) {
      lambda[i] = d()[i];
      squares[i] = e()[i] * e()[i];
    }
    fine_ = without_roots(lambda, squares);
    for (int end = n - 1; end > 0; --end) // exchanges of neighbours
      for (int i = 0; i < end; ++i) {
        const Real x = lambda[i], y = lambda[i + 1];
        lambda[i] = L::max(x, y);
        lambda[i + 1] = L::select(x > y, y, x);
      }
    for (int i = 0; i < n; ++i)
      values[i] = lambda[i] * unscale();
    return fine_;
  }

  // v (n × count) <- orthonormal eigenvectors of the largest `count` eigenvalues. After `values`.
  KOOPCORE_HD void vectors(int count, Real *v) {
    Real *order = e() + n;
    for (int i = 0; i < n; ++i)
      order[i] = L::broadcast(double(i));
    const Mask wrong = split_off(count);
    turn_back(order, count, v);
    if (!L::any(wrong))
      return;
    split_all(order);
    turn_back(order, count, spare());
    for (int i = 0; i < n * count; ++i)
      v[i] = L::select(wrong, spare()[i], v[i]);
  }

private:
  int rotations_ = 0, sweeps_ = 0;
  Real norm_, least_; // of the tridiagonal form, and what is rounding of it
  Mask fine_;

  // Its diagonal and what is beside it; `held` keeps both while steps are tried on them.
  KOOPCORE_HD Real *d() const { return work; }
  KOOPCORE_HD Real *e() const { return work + n; }
  KOOPCORE_HD Real *held() const { return work + 6 * n; }
  KOOPCORE_HD Real *spare() const { return work + 8 * n; }    // (n × n)
  KOOPCORE_HD Real *turns() const { return spare() + n * n; } // cosine and sine of every rotation

  // v (n × count) <- the vectors at the places `order`, through all rotations and reflections.
  KOOPCORE_HD void turn_back(const Real *order, int count, Real *v) const {
    const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
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

  // All rotations, the last one first, of K vectors, rows `width` apart.
  template <int K> KOOPCORE_HD void rotate(Real *v, int width) const {
    const Real *turn = turns() + 2 * rotations_;
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

  // What is below rounding of the whole matrix is zero.
  KOOPCORE_HD void neglect() {
    norm_ = L::broadcast(0.0);
    for (int i = 0; i < n; ++i)
      norm_ = L::max(norm_, L::abs(d()[i]) + L::abs(e()[i]));
    least_ = norm_ * 0x1p-54;
    fine_ = norm_ < 1e300;
    for (int i = 0; i < n - 1; ++i)
      e()[i] = L::select(L::abs(e()[i]) > least_, e()[i], L::broadcast(0.0));
  }

  // Of each lane the first block low … high without a zero beside the diagonal; `open` where there
  // is one; `begin` the first low of all.
  struct Blocks {
    Real low, high;
    Mask open;
    int begin;
  };
  KOOPCORE_HD bool next(Blocks &at) const {
    const Real zero = L::broadcast(0.0);
    for (int i = at.begin; i < n - 1; ++i)
      at.low = L::select(L::both(L::equal(at.low, i), L::opposite(L::abs(e()[i]) > zero)),
                         at.low + 1.0, at.low);
    at.open = L::both(fine_, at.low < n - 1.5);
    if (!L::any(at.open))
      return false;
    at.high = L::broadcast(n - 1.0);
    for (int i = n - 2; i >= at.begin; --i)
      at.high = L::select(L::both(at.low < i + 0.5, L::opposite(L::abs(e()[i]) > zero)),
                          L::broadcast(double(i)), at.high);
    return true;
  }

  // The shift: the eigenvalue of the leading 2 x 2 block that is next to its first entry.
  KOOPCORE_HD Real shift(Blocks &at) const {
    const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
    Real first = zero, second = zero, off = one;
    int start = n - 1;
    for (int i = n - 2; i >= at.begin; --i) {
      const Mask here = L::both(at.open, L::equal(at.low, i));
      if (!L::any(here))
        continue;
      start = i;
      first = L::select(here, d()[i], first);
      second = L::select(here, d()[i + 1], second);
      off = L::select(here, e()[i], off);
    }
    at.begin = start;
    const Real g = (second - first) / (2.0 * off);
    const Real r = L::sqrt(g * g + 1.0);
    return first - off / (g + L::select(g < 0.0, -r, r));
  }

  // lambda <- the eigenvalues of the diagonal lambda and the squares beside it. Where a square is
  // zero a step turns nothing, and begins anew behind it: no lane has to know where its blocks end,
  // and none sees how far the others are.
  KOOPCORE_HD Mask without_roots(Real *lambda, Real *squares) const {
    const Real zero = L::broadcast(0.0), one = L::broadcast(1.0), tiny = L::broadcast(1e-290);
    const Real least = least_ * least_;
    int begin = 0;
    for (int rotations = 0;; rotations += n - 1 - begin) {
      Real top = zero, next = zero, square = one; // where the first block of each lane begins
      for (int i = n - 2; i >= begin; --i) {
        const Mask some = squares[i] > least;
        squares[i] = L::select(some, squares[i], zero);
        top = L::select(some, lambda[i], top);
        next = L::select(some, lambda[i + 1], next);
        square = L::select(some, squares[i], square);
      }
      while (begin < n - 1 && !L::any(squares[begin] > zero))
        ++begin;
      if (begin >= n - 1)
        return fine_;
      if (rotations > symmetric_rotations(n))
        break;
      // The shift: the eigenvalue of the leading 2 x 2 block that is next to its first entry.
      const Real half = 0.5 * (next - top), root = L::sqrt(half * half + square);
      const Real sigma = top - square / (half + L::select(half < 0.0, -root, root));
      Real c = one, s = zero, gamma = lambda[n - 1] - sigma, p = gamma * gamma;
      Mask behind = zero > one;
      for (int i = n - 2; i >= begin; --i) {
        const Real beside = squares[i], r = p + (beside + tiny), over = L::inverse(r);
        const Mask some = p > tiny; // else c is zero, and gamma²/c a limit
        const Real up = r * L::inverse(L::max(p, tiny)), limit = c * beside;
        squares[i + 1] = s * r;
        c = p * over;
        s = beside * over;
        const Real before = gamma, alpha = lambda[i];
        gamma = c * (alpha - sigma) - s * before;
        const Mask here = beside > zero;
        lambda[i + 1] = L::select(here, before + (alpha - gamma),
                                  L::select(behind, before + sigma, lambda[i + 1]));
        behind = here;
        p = L::select(some, gamma * gamma * up, limit);
      }
      squares[begin] = s * p;
      lambda[begin] = L::select(behind, gamma + sigma, lambda[begin]);
    }
    Mask fine = fine_;
    for (int i = begin; i < n - 1; ++i)
      fine = L::both(fine, L::opposite(squares[i] > zero));
    return fine;
  }

  // One implicit QL step on the blocks, written down.
  KOOPCORE_HD void step(const Blocks &at, const Real &sigma) {
    const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
    Real *d = this->d(), *e = this->e(), *turn = turns() + 2 * rotations_;
    Real s = one, c = one, p = zero, g = zero;
    first[sweeps_++] = at.begin;
    for (int i = n - 2; i >= at.begin; --i, turn += 2) {
      const Mask begins = L::equal(at.high, i + 1);
      const Mask inside = L::both(L::both(at.open, at.high > i + 0.5), at.low < i + 0.5);
      s = L::select(begins, one, s);
      c = L::select(begins, one, c);
      p = L::select(begins, zero, p);
      g = L::select(begins, d[i + 1] - sigma, g);
      const Real f = s * e[i], b = c * e[i];
      // Nowhere zero, as g is not; of a matrix of trace one this is nothing.
      const Real square = L::max(f * f + g * g, L::broadcast(1e-290));
      const Real over = L::inverse_sqrt(square);
      s = f * over;
      c = g * over;
      const Real r = square * over;
      e[i + 1] =
          L::select(L::both(inside, L::opposite(begins)), L::select(r > least_, r, zero), e[i + 1]);
      const Real before = d[i + 1] - p;
      const Real twist = (d[i] - before) * s + 2.0 * c * b;
      p = s * twist;
      d[i + 1] = L::select(inside, before + p, d[i + 1]);
      g = c * twist - (b - 1e-140);
      turn[0] = L::select(inside, c, one);
      turn[1] = L::select(inside, s, zero);
      const Mask ends = L::both(inside, L::equal(at.low, i));
      d[i] = L::select(ends, d[i] - p, d[i]);
      e[i] = L::select(ends, L::select(L::abs(g) > least_, g, zero), e[i]);
    }
    rotations_ += n - 1 - at.begin;
  }

  // The largest `count` eigenvalues to the leading places, by steps shifted by them. Returns where
  // they do not come out: in matrices that fall apart, and some clusters.
  KOOPCORE_HD Mask split_off(int count) {
    const Real *lambda = work + 3 * n;
    const Real zero = L::broadcast(0.0), close = 16.0 * least_, near = 1e-13 * norm_;
    rotations_ = sweeps_ = 0;
    for (int i = 0; i < 2 * n; ++i)
      held()[i] = work[i];
    Mask wrong = L::both(fine_, L::opposite(fine_));
    for (int k = 0; k < count && k < n - 1; ++k) {
      for (int again = 0; again < 3; ++again) { // twice where rounding hides the eigenvalue
        Blocks at{L::broadcast(double(k)), L::broadcast(n - 1.0),
                  L::both(fine_, L::abs(e()[k]) > close), k};
        if (!L::any(at.open))
          break;
        for (int i = n - 2; i >= k; --i)
          at.high = L::select(L::abs(e()[i]) > zero, at.high, L::broadcast(double(i)));
        step(at, lambda[k]);
      }
      wrong = L::either(wrong, L::abs(e()[k]) > close);
      wrong = L::either(wrong, L::abs(d()[k] - lambda[k]) > near);
      e()[k] = zero;
    }
    return L::both(fine_, wrong);
  }

  // QL steps until every e is zero; order <- places of the eigenvalues, the largest first.
  KOOPCORE_HD void split_all(Real *order) {
    rotations_ = sweeps_ = 0;
    for (int i = 0; i < 2 * n; ++i)
      work[i] = held()[i];
    Blocks at{L::broadcast(0.0), L::broadcast(0.0), fine_, 0};
    while (next(at) && rotations_ + n <= symmetric_rotations(n))
      step(at, shift(at));
    for (int end = n - 1; end > 0; --end)
      for (int i = 0; i < end; ++i) {
        const Mask swap = d()[i] < d()[i + 1];
        const Real x = d()[i], y = d()[i + 1], p = order[i], q = order[i + 1];
        d()[i] = L::select(swap, y, x);
        d()[i + 1] = L::select(swap, x, y);
        order[i] = L::select(swap, q, p);
        order[i + 1] = L::select(swap, p, q);
      }
  }
};

} // namespace koopcore
