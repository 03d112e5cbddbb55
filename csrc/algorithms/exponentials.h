// Exponentials fitted to series by variable projection on their exponents, one series per lane.
//
// Mirrors koopcore/dmd/algebra/variable_projection.py: Levenberg-Marquardt with Kaufman's
// Gauss-Newton matrix, for real series at equal steps in time. Powers of exp(α/(n - 1)) make the
// exponentials.
#pragma once

#include "algorithms/modal.h"

#include <cstddef>

namespace koopcore {

struct ExponentModel {
  int n, k, r; // times, coordinates, exponents
  int most;    // iterations
};

KOOPCORE_HD static constexpr int exponent_point_size(int r) { return 2 * r * r + 2 * r + 2; }
KOOPCORE_HD static constexpr int exponent_work(int k, int r) {
  return 8 * r * r + 6 * r * k + 12 * r + 2 * exponent_point_size(r) + 2 * r * r + 4 * r + 2 * r;
}

template <class L> struct ExponentFit {
  using Real = typename L::Real;
  using Mask = typename L::Mask;
  using Complex = ComplexOf<L>;

  // The objective ‖R‖² at some exponents, and its Gauss-Newton model.
  struct Point {
    Complex *matrix, *slope; // (r × r) N and (r) g
    Real error, steepness;
  };

  ExponentModel model;
  const Real *c;            // (n × k)
  Real total;               // ‖c‖²
  const Real *used, *limit; // (r) 1 or 0; bounds on Re α
  Complex *gram, *once, *twice, *right, *late, *b, *phi, *factor_of;
  Complex *step_, *moved_, *ratio;
  Real *work;
  Point here, there;

  KOOPCORE_HD ExponentFit(const ExponentModel &m, const Real *coordinates, const Real *in_use,
                          const Real *bound, Real *space)
      : model(m), c(coordinates), used(in_use), limit(bound) {
    const int r = m.r;
    Complex *at = reinterpret_cast<Complex *>(space);
    const auto take = [&](int count) {
      Complex *from = at;
      at += count;
      return from;
    };
    gram = take(r * r);
    once = take(r * r);
    twice = take(r * r);
    factor_of = take(r * r);
    right = take(r * m.k);
    late = take(r * m.k);
    b = take(r * m.k);
    phi = take(r);
    ratio = take(r);
    step_ = take(2 * r);
    moved_ = take(r);
    here.matrix = take(r * r);
    there.matrix = take(r * r);
    here.slope = take(r);
    there.slope = take(r);
    work = reinterpret_cast<Real *>(at);
    total = L::broadcast(0.0);
    for (int i = 0; i < m.n * m.k; ++i)
      total += c[i] * c[i];
  }

  // Sums over all times, then the objective. powers(α, z, first): exp(α/(n - 1)) and the first
  // value of its exponential, relative to the end for growing ones.
  template <class Powers>
  KOOPCORE_HD void evaluate(const Complex *alpha, Powers &&powers, Point &p) {
    const Real zero = L::broadcast(0.0);
    const int r = model.r, k = model.k;
    for (int i = 0; i < r * r; ++i)
      gram[i] = once[i] = twice[i] = {zero, zero};
    for (int i = 0; i < r * k; ++i)
      right[i] = late[i] = {zero, zero};
    powers(alpha, ratio, phi);
    for (int i = 0; i < r; ++i)
      phi[i] = used[i] * phi[i];
    for (int t = 0; t < model.n; ++t) {
      const double time = double(t) / (model.n - 1);
      const Real *row = c + std::ptrdiff_t(t) * k;
      for (int i = 0; i < r; ++i) {
        const Complex left = conjugate<L>(phi[i]), later = {time * left.re, time * left.im};
        for (int j = 0; j <= i; ++j) {
          const Complex now = left * phi[j], then = {time * now.re, time * now.im};
          gram[i * r + j] = gram[i * r + j] + now;
          once[i * r + j] = once[i * r + j] + then;
          twice[i * r + j] = twice[i * r + j] + Complex{time * then.re, time * then.im};
        }
        for (int j = 0; j < k; ++j) {
          right[i * k + j] = right[i * k + j] + row[j] * left;
          late[i * k + j] = late[i * k + j] + row[j] * later;
        }
      }
      for (int i = 0; i < r; ++i)
        phi[i] = phi[i] * ratio[i];
    }
    for (int i = 0; i < r; ++i)
      for (int j = 0; j < i; ++j) {
        gram[j * r + i] = conjugate<L>(gram[i * r + j]);
        once[j * r + i] = conjugate<L>(once[i * r + j]);
        twice[j * r + i] = conjugate<L>(twice[i * r + j]);
      }
    HermitianSolver<L> solver(gram, r, factor_of, work);
    Real explained = zero;
    Complex *column = step_, *solution = step_ + r;
    for (int j = 0; j < k; ++j) {
      for (int i = 0; i < r; ++i)
        column[i] = right[i * k + j];
      solver.solve(column, solution);
      for (int i = 0; i < r; ++i) {
        b[i * k + j] = solution[i];
        explained += right[i * k + j].re * solution[i].re + right[i * k + j].im * solution[i].im;
      }
    }
    p.error = L::max(total - explained, zero);
    // Dᴴ P D: twice - once gram⁻¹ once, column after column; D = tΦ.
    for (int j = 0; j < r; ++j) {
      for (int i = 0; i < r; ++i)
        column[i] = once[i * r + j];
      solver.solve(column, solution);
      for (int i = 0; i < r; ++i) {
        Complex curve = twice[i * r + j], share = {zero, zero};
        for (int l = 0; l < r; ++l)
          curve = curve - once[i * r + l] * solution[l];
        for (int l = 0; l < k; ++l)
          share = share + conjugate<L>(b[i * k + l]) * b[j * k + l];
        p.matrix[i * r + j] = curve * share;
      }
    }
    p.steepness = zero;
    for (int i = 0; i < r; ++i) {
      Complex sum = {zero, zero};
      for (int l = 0; l < k; ++l) {
        Complex e = late[i * k + l];
        for (int j = 0; j < r; ++j)
          e = e - once[i * r + j] * b[j * k + l];
        sum = sum + e * conjugate<L>(b[i * k + l]);
      }
      p.slope[i] = sum;
      const Real scale = p.matrix[i * r + i].re * p.error;
      const Mask some = scale > 0.0;
      const Real cosine = L::sqrt(square_of<L>(sum) / L::select(some, scale, L::broadcast(1.0)));
      p.steepness = L::max(p.steepness, L::select(some, cosine, zero));
    }
  }

  // alpha (r) <- the exponents; error, and why each lane ended: 0 converged, 1 stalled, 2 neither.
  // pair(α): exact conjugate pairs.
  template <class Powers, class Pair>
  KOOPCORE_HD void run(Complex *alpha, Real &error, Real &stop, Real &iterations, Powers &&powers,
                       Pair &&pair) {
    const Real zero = L::broadcast(0.0), one = L::broadcast(1.0);
    const int r = model.r;
    const auto bounded = [&](Complex *x) {
      for (int i = 0; i < r; ++i)
        x[i].re = L::select(x[i].re > limit[i], limit[i], x[i].re);
    };
    bounded(alpha);
    evaluate(alpha, powers, here);
    Real damping = L::broadcast(1e-2), factor = L::broadcast(2.0);
    Mask open = L::everywhere();
    stop = L::broadcast(2.0);
    iterations = zero;
    for (int iteration = 1; iteration <= model.most; ++iteration) {
      for (int i = 0; i < r * r; ++i)
        gram[i] = here.matrix[i];
      for (int i = 0; i < r; ++i)
        gram[i * r + i].re = gram[i * r + i].re + damping * here.matrix[i * r + i].re;
      HermitianSolver<L> solver(gram, r, factor_of, work);
      solver.solve(here.slope, moved_);
      for (int i = 0; i < r; ++i)
        moved_[i] = alpha[i] + moved_[i];
      pair(moved_);
      bounded(moved_);
      Real expected = zero, length = zero, size = zero;
      for (int i = 0; i < r; ++i) {
        const Complex step = moved_[i] - alpha[i];
        const Complex push = here.slope[i] + (damping * here.matrix[i * r + i].re) * step;
        expected += step.re * push.re + step.im * push.im;
        length += square_of<L>(step);
      }
      evaluate(moved_, powers, there);
      const Real gain = here.error - there.error;
      const Mask better = L::both(open, gain > 0.0);
      const Mask sane = expected > 0.0;
      Real ratio_of = L::select(sane, gain / L::select(sane, expected, one), one);
      ratio_of = L::max(L::select(ratio_of > 2.0, L::broadcast(2.0), ratio_of), -one);
      const Real slant = 2.0 * ratio_of - 1.0;
      const Real shrink = L::max(L::broadcast(1.0 / 3.0), one - slant * slant * slant);
      damping = damping * L::select(better, shrink, factor);
      factor = L::select(better, L::broadcast(2.0), 2.0 * factor);
      const Mask little = L::both(better, gain < 1e-12 * there.error);
      for (int i = 0; i < r; ++i) {
        alpha[i] = choose<L>(better, moved_[i], alpha[i]);
        size += square_of<L>(alpha[i]);
        here.slope[i] = choose<L>(better, there.slope[i], here.slope[i]);
        for (int j = 0; j < r; ++j)
          here.matrix[i * r + j] =
              choose<L>(better, there.matrix[i * r + j], here.matrix[i * r + j]);
      }
      here.error = L::select(better, there.error, here.error);
      here.steepness = L::select(better, there.steepness, here.steepness);
      const Real scale = L::sqrt(size) + 1.0;
      Mask going = L::both(L::opposite(little), L::opposite(L::sqrt(length) < 1e-10 * scale));
      going = L::both(going, here.error > 1e-26 * total);
      going = L::both(going, L::opposite(here.steepness < 1e-8));
      const Mask done = L::both(open, L::opposite(going));
      const Mask stalled = L::both(L::both(open, going), damping > 1e12);
      stop = L::select(done, zero, L::select(stalled, one, stop));
      iterations = L::select(open, L::broadcast(double(iteration)), iterations);
      open = L::both(L::both(open, going), L::opposite(stalled));
      if (!L::any(open))
        break;
    }
    error = here.error;
  }
};

} // namespace koopcore
