// Rollout of the companion recurrence to several horizons, one group per lane.
//
// With S the companion matrix of a (N coefficients, oldest first) and q_t the impulse response
//     q_0 = 1,   q_t = Σ_i a_i q_{t-N+i}   (q of negative index is 0),
// the rolled vectors are convolutions of a with the last N values of q or of its running sums:
//     (S^{T-1} a)_i = Σ_{s<=i} a_{i-s} q_{T-1-s},    Σ_{t<=T} (S^{t-1} a)_i = Σ_{s<=i} a_{i-s}
//     Q_{T-1-s}.
// A step therefore costs N multiplications and nothing has to be shifted.
#pragma once

#include "algorithms/lanes.h"
#include "algorithms/polynomial_power.h"
#include "algorithms/product.h"

namespace koopcore {

constexpr int kStepBuffer = 256; // values of q kept in the buffer besides the last N
constexpr int kSteps = 8;        // values of q made together

// Numbers (Real) that `rollout` needs as work space.
KOOPCORE_HD static constexpr int rollout_work(int columns) {
  return kSteps + columns + 2 * (columns + kStepBuffer + kSteps) + 2 * columns +
         polynomial_work(columns);
}

// The impulse response as a sliding buffer: at(t) points at q_t, with at least N older values.
template <class L> class ImpulseResponse {
  using Real = typename L::Real;

public:
  KOOPCORE_HD ImpulseResponse(const Real *a, int columns, bool sums, Real *work)
      : a_(work + kSteps), columns_(columns), sums_(sums), q_(a_ + 2 * columns),
        total_(q_ + columns + kStepBuffer + kSteps) {
    for (int j = 0; j < kSteps; ++j)
      a_[j - kSteps] = L::broadcast(0.0);
    for (int i = 0; i < columns; ++i)
      a_[i] = a[i];
    for (int i = -columns; i < 0; ++i)
      q_[i] = total_[i] = L::broadcast(0.0);
    q_[0] = total_[0] = L::broadcast(1.0);
  }

  KOOPCORE_HD void advance(std::int64_t t) {
    while (offset_ + newest_ < t) {
      if (newest_ + kSteps > kStepBuffer)
        slide();
      step();
    }
  }
  KOOPCORE_HD const Real *value(std::int64_t t) const { return q_ + (t - offset_); }
  KOOPCORE_HD const Real *sum(std::int64_t t) const { return total_ + (t - offset_); }

private:
  // Eight steps at a time: each loaded value of q serves eight chains.
  KOOPCORE_HD void step() {
    const int t = newest_ + 1;
    const Real *window = q_ + (t - columns_);
    Real s[kSteps];
    KOOPCORE_UNROLL
    for (int j = 0; j < kSteps; ++j)
      s[j] = L::broadcast(0.0);
    for (int i = 0; i < columns_; ++i) {
      const Real x = window[i];
      KOOPCORE_UNROLL
      for (int j = 0; j < kSteps; ++j)
        s[j] += a_[i - j] * x;
    }
    KOOPCORE_UNROLL
    for (int j = 0; j < kSteps; ++j)
      KOOPCORE_UNROLL
    for (int later = j + 1; later < kSteps; ++later)
      s[later] += a_[columns_ - later + j] * s[j];
    KOOPCORE_UNROLL
    for (int j = 0; j < kSteps; ++j)
      q_[t + j] = s[j];
    if (sums_)
      KOOPCORE_UNROLL
    for (int j = 0; j < kSteps; ++j)
      total_[t + j] = total_[t + j - 1] + s[j];
    newest_ += kSteps;
  }

  // Only the last N values are looked at again: horizons come in ascending order.
  KOOPCORE_HD void slide() {
    for (int i = -columns_; i <= 0; ++i) {
      q_[i] = q_[i + newest_];
      total_[i] = total_[i + newest_];
    }
    offset_ += newest_;
    newest_ = 0;
  }

  Real *a_; // behind kSteps zeros: a coefficient of negative index is one
  int columns_;
  bool sums_;
  Real *q_, *total_;
  std::int64_t offset_ = 0;
  int newest_ = 0;
};

// out_i = Σ_{s<=i} a_{i-s} newest[-s].
template <class L>
KOOPCORE_HD void convolve(const typename L::Real *a, int columns, const typename L::Real *newest,
                          typename L::Real *out) {
  for (int i = 0; i < columns; ++i) {
    typename L::Real even = L::broadcast(0.0), odd = L::broadcast(0.0);
    int s = 0;
    for (; s + 2 <= i + 1; s += 2) {
      even += a[i - s] * newest[-s];
      odd += a[i - s - 1] * newest[-s - 1];
    }
    if (s <= i)
      even += a[i - s] * newest[-s];
    out[i] = even + odd;
  }
}

// Weights (n) on B and the growth of one horizon, from power = S^{T-1} a, total = its sum and
// reference = |a|². A divergent lane gives w = 1, which is the last snapshot, and infinite growth.
template <class L>
KOOPCORE_HD typename L::Real weigh(const typename L::Real &reference, const typename L::Real *power,
                                   const typename L::Real *total, int columns, bool affine,
                                   typename L::Real *weights) {
  using Real = typename L::Real;
  const Real one = L::broadcast(1.0);
  const Real square = dot<L>(power, power, columns);
  const int n = columns + 1 + (affine ? 1 : 0);
  if (affine) {
    weights[0] = weights[1] = one;
    for (int i = 0; i < columns; ++i)
      weights[2 + i] = one + total[i];
  } else {
    Real sum = L::broadcast(0.0);
    for (int i = columns; i-- > 0;) {
      sum += power[i];
      weights[i + 1] = sum;
    }
    weights[0] = sum;
  }
  typename L::Mask tame = L::everywhere();
  for (int i = 0; i < n; ++i)
    tame = L::both(tame, L::abs(weights[i]) <= kWeightLimit);
  for (int i = 0; i < n; ++i)
    weights[i] = L::select(tame, weights[i], one);
  return L::select(tame, L::sqrt(square / reference), L::broadcast(HUGE_VAL));
}

// Calls emit(i, weights, growth) for every horizon i; `horizons` ascending, each at least 1.
template <class L, class Emit>
KOOPCORE_HD void rollout(const typename L::Real *a, int columns, bool affine,
                         const std::int64_t *horizons, int n_horizons, typename L::Real *weights,
                         typename L::Real *work, Emit &&emit) {
  using Real = typename L::Real;
  Real *power = work, *total = work + columns;
  Real *polynomials = total + columns;
  ImpulseResponse<L> response(a, columns, affine, polynomials + polynomial_work(columns));
  std::int64_t reached = 0; // the horizon that power and total belong to
  const Real reference = dot<L>(a, a, columns);
  for (int h = 0; h < n_horizons; ++h) {
    const std::int64_t horizon = horizons[h];
    if (reached > 0 && horizon - reached <= columns / 2) {
      for (; reached < horizon; ++reached) { // dense horizons: shift, N multiplications each
        times_x<L>(a, columns, power);
        if (affine)
          for (int i = 0; i < columns; ++i)
            total[i] += power[i];
      }
    } else if (horizon > kDirectSteps) {
      companion_power<L>(a, columns, affine, horizon, power, total, polynomials);
    } else {
      response.advance(horizon - 1);
      convolve<L>(a, columns, response.value(horizon - 1), power);
      if (affine)
        convolve<L>(a, columns, response.sum(horizon - 1), total);
    }
    reached = horizon;
    const Real growth = weigh<L>(reference, power, total, columns, affine, weights);
    emit(h, weights, growth);
  }
}

} // namespace koopcore
