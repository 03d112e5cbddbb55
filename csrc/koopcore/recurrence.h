// Rollout of the companion recurrence to several horizons, one group per lane.
//
// With S the companion matrix of a (N coefficients, oldest first) and q_t the impulse response
//     q_0 = 1,   q_t = Σ_i a_i q_{t-N+i}   (q of negative index is 0),
// the rolled vectors are convolutions of a with the last N values of q or of its running sums:
//     (S^{T-1} a)_i = Σ_{s<=i} a_{i-s} q_{T-1-s},    Σ_{t<=T} (S^{t-1} a)_i = Σ_{s<=i} a_{i-s}
//     Q_{T-1-s}.
// A step therefore costs N multiplications and nothing has to be shifted.
#pragma once

#include "koopcore/lanes.h"
#include "koopcore/polynomial_power.h"

namespace koopcore {

constexpr int kStepBuffer = 256; // values of q kept in the buffer besides the last N

// Numbers (Real) that `rollout` needs as work space.
KOOPCORE_HD static constexpr int rollout_work(int columns) {
  return 2 * (columns + kStepBuffer + 8) + 2 * columns + polynomial_work(columns);
}

// The impulse response as a sliding buffer: at(t) points at q_t, with at least N older values.
template <class L> class ImpulseResponse {
  using Real = typename L::Real;

public:
  KOOPCORE_HD ImpulseResponse(const Real *a, int columns, bool sums, Real *work)
      : a_(a), columns_(columns), sums_(sums), q_(work + columns),
        total_(work + 2 * columns + kStepBuffer + 8) {
    for (int i = -columns; i < 0; ++i)
      q_[i] = total_[i] = L::broadcast(0.0);
    q_[0] = total_[0] = L::broadcast(1.0);
  }

  KOOPCORE_HD void advance(std::int64_t t) {
    while (offset_ + newest_ < t) {
      if (newest_ + 4 > kStepBuffer)
        slide();
      step();
    }
  }
  KOOPCORE_HD const Real *value(std::int64_t t) const { return q_ + (t - offset_); }
  KOOPCORE_HD const Real *sum(std::int64_t t) const { return total_ + (t - offset_); }

private:
  // Four steps at a time: each loaded value of q serves four chains.
  KOOPCORE_HD void step() {
    const int t = newest_ + 1;
    const Real *window = q_ + (t - columns_);
    const Real zero = L::broadcast(0.0);
    Real s0 = zero, s1 = zero, s2 = zero, s3 = zero, a1 = zero, a2 = zero, a3 = zero;
    for (int i = 0; i < columns_; ++i) {
      const Real x = window[i], a0 = a_[i];
      s0 += a0 * x;
      s1 += a1 * x;
      s2 += a2 * x;
      s3 += a3 * x;
      a3 = a2;
      a2 = a1;
      a1 = a0;
    }
    s1 += a1 * s0;
    s2 += a2 * s0;
    s3 += a3 * s0;
    s2 += a1 * s1;
    s3 += a2 * s1;
    s3 += a1 * s2;
    Real *out = q_ + t;
    out[0] = s0;
    out[1] = s1;
    out[2] = s2;
    out[3] = s3;
    if (sums_) {
      Real *total = total_ + t;
      total[0] = total[-1] + s0;
      total[1] = total[0] + s1;
      total[2] = total[1] + s2;
      total[3] = total[2] + s3;
    }
    newest_ += 4;
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

  const Real *a_;
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

// Weights (n) on B and the growth of one horizon, from power = S^{T-1} a and total = its sum. A
// divergent lane gives w = 1, which is the last snapshot, and an infinite growth.
template <class L>
KOOPCORE_HD typename L::Real weigh(const typename L::Real *a, const typename L::Real *power,
                                   const typename L::Real *total, int columns, bool affine,
                                   typename L::Real *weights) {
  using Real = typename L::Real;
  const Real one = L::broadcast(1.0);
  Real square = L::broadcast(0.0), reference = L::broadcast(0.0);
  for (int i = 0; i < columns; ++i) {
    square += power[i] * power[i];
    reference += a[i] * a[i];
  }
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
    const Real growth = weigh<L>(a, power, total, columns, affine, weights);
    emit(h, weights, growth);
  }
}

} // namespace koopcore
