// Eigenvalues and eigenvectors of small real matrices, one group per lane.
//
// Hessenberg form, Francis's double steps to the real Schur form, 2 x 2 blocks taken apart in
// complex numbers, back substitution (Golub & Van Loan, sections 7.4 to 7.6). Every lane has its
// own active block; a step that is none of a lane's is a reflection by nothing there.
#pragma once

#include "algorithms/lanes.h"

namespace koopcore {

constexpr int kStepsPerRow = 12; // of Francis: two or three are usual

// A complex number per lane.
template <class L> struct ComplexOf {
  using Real = typename L::Real;
  Real re, im;

  KOOPCORE_HD friend ComplexOf operator+(const ComplexOf &a, const ComplexOf &b) {
    return {a.re + b.re, a.im + b.im};
  }
  KOOPCORE_HD friend ComplexOf operator-(const ComplexOf &a, const ComplexOf &b) {
    return {a.re - b.re, a.im - b.im};
  }
  KOOPCORE_HD friend ComplexOf operator*(const ComplexOf &a, const ComplexOf &b) {
    return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
  }
  KOOPCORE_HD friend ComplexOf operator*(const Real &a, const ComplexOf &b) {
    return {a * b.re, a * b.im};
  }
};

template <class L> KOOPCORE_HD ComplexOf<L> conjugate(const ComplexOf<L> &a) {
  return {a.re, -a.im};
}
template <class L>
KOOPCORE_HD ComplexOf<L> choose(const typename L::Mask &m, const ComplexOf<L> &a,
                                const ComplexOf<L> &b) {
  return {L::select(m, a.re, b.re), L::select(m, a.im, b.im)};
}
template <class L> KOOPCORE_HD typename L::Real square_of(const ComplexOf<L> &a) {
  return a.re * a.re + a.im * a.im;
}

KOOPCORE_HD static constexpr int schur_work(int n) { return 6 * n * n + 4 * n; }

template <class L> struct Schur {
  using Real = typename L::Real;
  using Mask = typename L::Mask;
  using Complex = ComplexOf<L>;

  int n;
  Real *h;        // (n × n), row-major: the matrix, then its Schur form
  Real *z;        // (n × n) the rotation to it
  Complex *t, *q; // (n × n) both in complex numbers
  Complex *x;     // (n)
  Real norm;

  KOOPCORE_HD Schur(int size, Real *work)
      : n(size), h(work), z(h + size * size), t(reinterpret_cast<Complex *>(z + size * size)),
        q(t + size * size), x(q + size * size) {}

  // Eigenvalues, and unit eigenvectors in the columns of `vectors` (n × n), of the leading (size ×
  // size) block of h, whose other entries are zero. Conjugate pairs are exact and stand next to
  // each other, the positive imaginary part first; `pair` (n) is 1 at the first of two, 2 at the
  // second, 0 at real ones. Returns the lanes in which they were found.
  KOOPCORE_HD Mask decompose(const Real &size, Complex *values, Complex *vectors, Real *pair) {
    const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
    norm = zero;
    for (int i = 0; i < n * n; ++i) {
      norm = L::max(norm, L::abs(h[i]));
      z[i] = i % (n + 1) == 0 ? one : zero;
    }
    hessenberg();
    const Mask fine = iterate(size);
    take_apart(values, pair);
    back_substitute(values, pair, vectors);
    return fine;
  }

private:
  // Subtracts the multiple of the reflection v of rows k … k + count - 1, of columns from `begin`.
  KOOPCORE_HD void reflect_rows(const Real *v, const Real &beta, int k, int count, int begin) {
    for (int j = begin; j < n; ++j) {
      Real sum = v[0] * h[k * n + j];
      for (int i = 1; i < count; ++i)
        sum += v[i] * h[(k + i) * n + j];
      sum = beta * sum;
      for (int i = 0; i < count; ++i)
        h[(k + i) * n + j] = h[(k + i) * n + j] - v[i] * sum;
    }
  }
  KOOPCORE_HD void reflect_columns(Real *m, int rows, const Real *v, const Real &beta, int k,
                                   int count) {
    for (int i = 0; i < rows; ++i) {
      Real *row = m + i * n + k;
      Real sum = v[0] * row[0];
      for (int j = 1; j < count; ++j)
        sum += v[j] * row[j];
      sum = beta * sum;
      for (int j = 0; j < count; ++j)
        row[j] = row[j] - sum * v[j];
    }
  }

  KOOPCORE_HD void hessenberg() {
    const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
    Real *v = reinterpret_cast<Real *>(x);
    for (int k = 0; k + 2 < n; ++k) {
      Real size = zero;
      for (int i = k + 2; i < n; ++i)
        size += h[i * n + k] * h[i * n + k];
      const Mask some = size > 0.0;
      if (!L::any(some))
        continue;
      const Real head = h[(k + 1) * n + k];
      const Real length = L::select(head < 0.0, -one, one) * L::sqrt(size + head * head);
      v[0] = head + length;
      for (int i = k + 2; i < n; ++i)
        v[i - k - 1] = h[i * n + k];
      const Real square = size + v[0] * v[0];
      const Real beta = L::select(some, 2.0 / L::select(some, square, one), zero);
      reflect_rows(v, beta, k + 1, n - k - 1, k);
      reflect_columns(h, n, v, beta, k + 1, n - k - 1);
      reflect_columns(z, n, v, beta, k + 1, n - k - 1);
      for (int i = k + 2; i < n; ++i)
        h[i * n + k] = zero;
    }
  }

  KOOPCORE_HD Mask iterate(const Real &size) {
    const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
    Real high = size - 1.0, steps = zero;
    Mask fine = norm < 1e300;
    for (int step = 0; step < kStepsPerRow * n; ++step) {
      // The active block low … high of each lane: above it, entries below the diagonal are zero.
      Real low;
      for (;;) {
        low = zero;
        for (int k = 1; k < n; ++k) {
          Real near = L::abs(h[(k - 1) * n + k - 1]) + L::abs(h[k * n + k]);
          near = L::select(near > 0.0, near, norm);
          const Mask small = L::opposite(L::abs(h[k * n + k - 1]) > 0x1p-53 * near);
          h[k * n + k - 1] = L::select(small, zero, h[k * n + k - 1]);
          low = L::select(L::both(small, high > k - 0.5), L::broadcast(double(k)), low);
        }
        const Mask ends = L::both(high > 0.5, low > high - 1.5); // a block of one or two rows
        if (!L::any(ends))
          break;
        high = L::select(ends, low - 1.0, high);
        steps = L::select(ends, zero, steps);
      }
      const Mask open = L::both(fine, high > 1.5);
      if (!L::any(open))
        return fine;
      steps = L::select(steps > 9.5, one, steps + 1.0);
      francis(low, high, steps, open);
    }
    return L::both(fine, high < 1.5);
  }

  // One double step on the block low … high of each open lane.
  KOOPCORE_HD void francis(const Real &low, const Real &high, const Real &steps, const Mask &open) {
    const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
    Real a = zero, b = zero, c = zero, d = zero, above = zero; // the last 2 x 2 block
    int first = n, last = 0;
    for (int k = 1; k < n; ++k) {
      const Mask here = L::both(open, L::equal(high, k));
      if (L::any(here))
        last = k;
      a = L::select(here, h[(k - 1) * n + k - 1], a);
      b = L::select(here, h[(k - 1) * n + k], b);
      c = L::select(here, h[k * n + k - 1], c);
      d = L::select(here, h[k * n + k], d);
      if (k > 1)
        above = L::select(here, h[(k - 1) * n + k - 2], above);
    }
    // The sum and the product of the shifts, its eigenvalues; others to leave a cycle (EISPACK).
    const Real away = L::abs(c) + L::abs(above);
    const Mask tenth = steps > 9.5;
    const Real sum = L::select(tenth, 1.5 * away, a + d);
    const Real product = L::select(tenth, away * away, a * d - b * c);
    Real v[3] = {zero, zero, zero};
    for (int k = 0; k + 2 < n; ++k) {
      const Mask here = L::both(open, L::equal(low, k));
      if (L::any(here) && k < first)
        first = k;
      const Real p = h[k * n + k], below = h[(k + 1) * n + k], next = h[(k + 1) * n + k + 1];
      v[0] = L::select(here, p * p + h[k * n + k + 1] * below - sum * p + product, v[0]);
      v[1] = L::select(here, below * (p + next - sum), v[1]);
      v[2] = L::select(here, below * h[(k + 2) * n + k + 1], v[2]);
    }
    for (int k = first; k < last; ++k) {
      const Mask inside = L::both(open, L::both(low<k + 0.5, high> k + 0.5));
      const Mask later = L::both(inside, low < k - 0.5);
      const int count = k + 2 < n ? 3 : 2;
      if (k > first) {
        v[0] = L::select(later, h[k * n + k - 1], v[0]);
        v[1] = L::select(later, h[(k + 1) * n + k - 1], v[1]);
        if (count == 3) // the third row belongs to the block, or its entry is zero
          v[2] = L::select(later, h[(k + 2) * n + k - 1], v[2]);
      }
      Real w[3] = {v[0], v[1], count == 3 ? v[2] : zero};
      // Scaled, so that squares of what is small do not underflow.
      const Real scale = L::max(L::abs(w[0]), L::max(L::abs(w[1]), L::abs(w[2])));
      const Mask some = L::both(inside, scale > 0.0);
      const Real over = 1.0 / L::select(some, scale, one);
      for (int i = 0; i < 3; ++i)
        w[i] = w[i] * over;
      const Real square = w[0] * w[0] + w[1] * w[1] + w[2] * w[2];
      const Real length = L::select(w[0] < 0.0, -one, one) * L::sqrt(square);
      w[0] = w[0] + length;
      const Real whole = w[0] * w[0] + w[1] * w[1] + w[2] * w[2];
      const Real beta = L::select(some, 2.0 / L::select(some, whole, one), zero);
      for (int i = 0; i < 3; ++i)
        w[i] = L::select(some, w[i], zero);
      reflect_rows(w, beta, k, count, k);
      reflect_columns(h, k + 4 < n ? k + 4 : n, w, beta, k, count);
      reflect_columns(z, n, w, beta, k, count);
      if (k > first) {
        const Mask done = L::both(later, some);
        h[k * n + k - 1] = L::select(done, -(length * scale), h[k * n + k - 1]);
        h[(k + 1) * n + k - 1] = L::select(later, zero, h[(k + 1) * n + k - 1]);
        if (count == 3)
          h[(k + 2) * n + k - 1] = L::select(later, zero, h[(k + 2) * n + k - 1]);
      }
    }
  }

  // t, q <- the complex Schur form: every 2 x 2 block is rotated into a triangle.
  KOOPCORE_HD void take_apart(Complex *values, Real *pair) {
    const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
    for (int i = 0; i < n * n; ++i) {
      t[i] = {h[i], zero};
      q[i] = {z[i], zero};
    }
    for (int i = 0; i < n; ++i) {
      pair[i] = zero;
      values[i] = t[i * n + i];
    }
    for (int k = 0; k + 1 < n; ++k) {
      const Real below = h[(k + 1) * n + k];
      const Mask block = L::abs(below) > 0.0;
      if (!L::any(block))
        continue;
      const Real a = h[k * n + k], b = h[k * n + k + 1], d = h[(k + 1) * n + k + 1];
      const Real half = 0.5 * (a - d), inner = half * half + b * below;
      const Mask whirl = L::both(block, inner < 0.0);
      const Real root = L::sqrt(L::abs(inner));
      // λ₁ next to a, without cancellation where both are real.
      const Real far = half + L::select(half < 0.0, -root, root);
      const Mask apart = L::abs(far) > 0.0;
      const Real other = L::select(apart, (b * below) / L::select(apart, far, one), zero);
      const Real middle = 0.5 * (a + d);
      const Complex first = {L::select(whirl, middle, d + far), L::select(whirl, root, zero)};
      const Complex second = {L::select(whirl, middle, d - other), L::select(whirl, -root, zero)};
      // The eigenvector (λ₁ - d, below) is the first column of the rotation.
      Complex s = {L::select(whirl, half, far), first.im};
      const Real over = one / L::sqrt(L::select(block, square_of<L>(s) + below * below, one));
      Complex c = over * s;
      Real sine = L::select(block, over * below, zero);
      c = choose<L>(block, c, Complex{one, zero});
      for (int j = k; j < n; ++j) { // rows: [c̄ s; -s c]
        const Complex upper = t[k * n + j], lower = t[(k + 1) * n + j];
        t[k * n + j] = conjugate<L>(c) * upper + sine * lower;
        t[(k + 1) * n + j] = c * lower - sine * upper;
      }
      for (int side = 0; side < 2; ++side) {
        Complex *m = side == 0 ? t : q;
        const int rows = side == 0 ? k + 2 : n;
        for (int i = 0; i < rows; ++i) {
          const Complex left = m[i * n + k], right = m[i * n + k + 1];
          m[i * n + k] = c * left + sine * right;
          m[i * n + k + 1] = conjugate<L>(c) * right - sine * left;
        }
      }
      t[(k + 1) * n + k] = choose<L>(block, Complex{zero, zero}, t[(k + 1) * n + k]);
      values[k] = choose<L>(block, first, values[k]);
      values[k + 1] = choose<L>(block, second, values[k + 1]);
      pair[k] = L::select(whirl, one, pair[k]);
      pair[k + 1] = L::select(whirl, L::broadcast(2.0), pair[k + 1]);
    }
  }

  // Eigenvectors of the triangle, then of the matrix; of a pair one is computed.
  KOOPCORE_HD void back_substitute(const Complex *values, const Real *pair, Complex *vectors) {
    const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
    const Real least = L::select(norm > 0.0, 0x1p-53 * norm, one);
    for (int k = 0; k < n; ++k) {
      const Mask second = pair[k] > 1.5;
      if (!L::any(L::opposite(second))) {
        for (int i = 0; i < n; ++i)
          vectors[i * n + k] = conjugate<L>(vectors[i * n + k - 1]);
        continue;
      }
      x[k] = {one, zero};
      for (int i = k - 1; i >= 0; --i) {
        Complex sum = {zero, zero};
        for (int j = i + 1; j <= k; ++j)
          sum = sum + t[i * n + j] * x[j];
        Complex gap = values[i] - values[k];
        const Mask tiny = L::opposite(L::abs(gap.re) + L::abs(gap.im) > least);
        gap = choose<L>(tiny, Complex{least, zero}, gap);
        const Real over = -one / square_of<L>(gap);
        x[i] = (over * conjugate<L>(gap)) * sum;
        const Real size = L::abs(x[i].re) + L::abs(x[i].im);
        const Mask large = size > 1e50;
        if (L::any(large)) {
          const Real down = L::select(large, 1.0 / L::select(large, size, one), one);
          for (int j = i; j <= k; ++j)
            x[j] = down * x[j];
        }
      }
      Real length = zero;
      for (int i = 0; i < n; ++i) {
        Complex sum = {zero, zero};
        for (int j = 0; j <= k; ++j)
          sum = sum + q[i * n + j] * x[j];
        vectors[i * n + k] = sum;
        length += square_of<L>(sum);
      }
      const Real over = one / L::sqrt(length);
      const Mask real = pair[k] < 0.5;
      for (int i = 0; i < n; ++i) {
        Complex v = over * vectors[i * n + k];
        if (k > 0)
          v = choose<L>(second, conjugate<L>(vectors[i * n + k - 1]), v);
        vectors[i * n + k] = v;
      }
      turn_real(real, vectors + k);
    }
  }

  // The vector of a real eigenvalue is real but for a phase, which its largest entry tells.
  KOOPCORE_HD void turn_real(const Mask &real, Complex *column) {
    const Real zero = L::broadcast(0.0);
    Complex top = {zero, zero};
    Real most = zero;
    for (int i = 0; i < n; ++i) {
      const Real square = square_of<L>(column[i * n]);
      const Mask above = square > most;
      most = L::select(above, square, most);
      top = choose<L>(above, column[i * n], top);
    }
    const Real size = L::sqrt(L::select(most > 0.0, most, L::broadcast(1.0)));
    const Complex turn = (1.0 / size) * conjugate<L>(top);
    for (int i = 0; i < n; ++i) {
      const Complex v = turn * column[i * n];
      column[i * n] = choose<L>(real, Complex{v.re, zero}, column[i * n]);
    }
  }
};

} // namespace koopcore
