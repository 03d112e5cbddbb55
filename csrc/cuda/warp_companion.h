// The companion fit and rollout of one group by a whole warp: lane i has row i of the matrix.
//
// The same factorization, rules and formulas as algorithms/cholesky.h, companion.h and
// recurrence.h, where a lane has a group of its own. A warp together takes a small fraction of the
// time that one lane takes, and more than a 32nd of it: this is for kernels that wait for a single
// group.
#pragma once

#include "cuda/problem.h"
#include "cuda/warp.h"

namespace koopcore::cuda {

// c <- x·c mod p from step to step (see polynomial_power.h). Lane i + 1 has the coefficient of x^i;
// lane 0 has zero, which is what comes in from below.
class WarpRollout {
public:
  // a: lane i's coefficient of the recurrence of up to 31, zero in lanes from `columns` on.
  __device__ WarpRollout(double a, int columns, int lane) : columns_(columns), lane_(lane) {
    const double below = __shfl_up_sync(kAllLanes, a, 1);
    a_ = power_ = total_ = lane > 0 ? below : 0.0;
  }

  __device__ void advance(std::int64_t horizon) {
    for (int left = int(horizon) - reached_; left > 0; --left) {
      const double last = __shfl_sync(kAllLanes, power_, columns_);
      const double below = __shfl_up_sync(kAllLanes, power_, 1);
      power_ = a_ * last + below;
      total_ += power_;
    }
    reached_ = int(horizon);
  }

  // w - 1 (n) on B at the horizon reached, all zero where the rollout diverged.
  __device__ void weigh(bool affine, double *moves) const {
    const bool inside = lane_ > 0 && lane_ <= columns_;
    double sum = inside ? power_ : 0.0; // of the lanes from this one on
    for (int apart = 1; apart < 32; apart *= 2) {
      const double later = __shfl_down_sync(kAllLanes, sum, apart);
      sum += lane_ + apart < 32 ? later : 0.0;
    }
    const double move = affine ? total_ : sum - 1.0;
    const bool diverged = __any_sync(kAllLanes, inside && !(::fabs(move) <= kWeightLimit));
    __syncwarp(); // others may still read what stands there
    if (inside)
      moves[lane_ + (affine ? 1 : 0)] = diverged ? 0.0 : move;
    if (affine && lane_ < 2)
      moves[lane_] = 0.0;
    if (!affine && lane_ == 1)
      moves[0] = diverged ? 0.0 : move; // x_1 has the weight of the first difference
    __syncwarp();
  }

private:
  double a_, power_, total_;
  int columns_, lane_, reached_ = 1;
};

// One group's matrix of N rows in shared memory: G below and on the diagonal. The factorization
// keeps its columns above the diagonal, so that G stays whole.
template <int N> class WarpCompanion {
public:
  static constexpr int kPitch = N + 1; // odd: the lanes of a column use different banks
  static constexpr int kNumbers = N * kPitch + N;

  // shared: kNumbers, with entry (i, j) of G at shared[i kPitch + j], i >= j.
  __device__ WarpCompanion(double *shared, int n, bool affine, int lane)
      : matrix_(shared), vector_(shared + N * kPitch), n_(n), first_(affine ? 1 : 0),
        columns_(n - 1 - first_), lane_(lane) {}

  // L D Lᵀ of the equilibrated matrix in time order. Returns the rank: all columns, or fewer where
  // that cannot be told from this factor (see `sure_of_rank` in backends/reference.py). `noise`
  // multiplies the tolerances of fp64 sums.
  __device__ int factor(double noise) {
    const int done = cholesky(noise);
    return done == columns_ && columns_ > 0 && !sure_of_rank(noise) ? columns_ - 1 : done;
  }

  // The lane's coefficient of column k on the columns before it, zero from lane k on: on snapshots,
  // or on differences. The factorization must have got there; `hindcast` ends this.
  __device__ double recurrence(int k) const {
    double y = lane_ < k ? matrix_[lane_ * kPitch + k] * inverse_ : 0.0; // Lᵀ y = row k of L
    for (int i = k - 1; i > 0; --i) {
      const double of = __shfl_sync(kAllLanes, y, i);
      if (lane_ < i)
        y -= matrix_[lane_ * kPitch + i] * inverse_ * of;
    }
    double a = lane_ < k ? y * vector_[lane_] * (1.0 / vector_[k]) : 0.0;
    if (first_ == 1 || k == 0)
      return a;
    const double next = __shfl_down_sync(kAllLanes, a, 1); // from [x_1, d_1 …] to [x_1, x_2 …]
    if (lane_ + 1 < k)
      a -= next;
    return lane_ == k - 1 ? a + 1.0 : a;
  }

  // Of a factorization that went through:
  __device__ double residual() const { return residual_; }
  __device__ double condition() const {
    const double greatest = max_lanes(inverse_);
    const double least = -max_lanes(lane_ < columns_ ? -inverse_ : -HUGE_VAL);
    return ::sqrt(greatest / least);
  }
  // ‖B w - x_n‖ / ‖x_n - x_{n-holdout}‖ of the fit to all but the last `holdout` snapshots.
  __device__ double hindcast(int holdout) {
    const int shorter = columns_ - holdout;
    WarpRollout rollout(recurrence(shorter), shorter, lane_);
    rollout.advance(holdout);
    rollout.weigh(first_ == 1, vector_);
    const bool after = lane_ >= n_ - holdout && lane_ < n_;
    if (after)
      vector_[lane_] = -1.0;
    __syncwarp();
    const double square = quadratic_form();
    if (lane_ < n_)
      vector_[lane_] = after ? 1.0 : 0.0;
    __syncwarp();
    const double movement = quadratic_form();
    return movement > 0.0 ? ::sqrt(Scalar::max(square, 0.0) / movement) : 0.0;
  }

  // Copies G to the packed matrix `to` whose entries stand `apart` numbers apart.
  __device__ void save(double *to, std::int64_t apart) const {
    for (int i = 0; i < n_; ++i)
      if (lane_ <= i)
        to[packed_index(i, lane_) * apart] = matrix_[i * kPitch + lane_];
  }

private:
  using Scalar = ScalarLanes<void>;

  // The columns done before a pivot broke down (`breakdown_tolerance`).
  __device__ int cholesky(double noise) {
    const int rows = columns_ + 1;
    const double scale = lane_ < rows ? Scalar::power_of_two_scale(gram(lane_, lane_)) : 0.0;
    if (lane_ < N)
      vector_[lane_] = scale;
    __syncwarp();
    double a[N]; // the row, up to its diagonal
    KOOPCORE_UNROLL
    for (int j = 0; j < N; ++j)
      a[j] = lane_ < rows && j <= lane_ ? gram(lane_, j) * (scale * vector_[j]) : 0.0;
    const double tolerance = noise * breakdown_tolerance(columns_);
    KOOPCORE_UNROLL
    for (int k = 0; k < N; ++k) {
      const double pivot = __shfl_sync(kAllLanes, a[k], k);
      if (k >= columns_) {
        residual_ = ::sqrt(Scalar::max(pivot, 0.0)) / vector_[columns_];
        return columns_;
      }
      const double square = vector_[k] * vector_[k];
      if (!(pivot > tolerance * (gram(k, k) * square)))
        return k;
      const double inverse = 1.0 / pivot;
      if (lane_ == k)
        inverse_ = inverse;
      if (lane_ > k && lane_ < N)
        matrix_[k * kPitch + lane_] = a[k];
      __syncwarp();
      const double l = a[k] * inverse;
      KOOPCORE_UNROLL
      for (int j = k + 1; j < N; ++j)
        a[j] -= l * matrix_[k * kPitch + j];
    }
    return columns_;
  }

  // Whether full rank is no rounding, nor near the cut-off of F, and squares are in range; of a
  // factorization that went through.
  __device__ bool sure_of_rank(double noise) const {
    const bool inside = lane_ < columns_;
    const double total = sum_lanes(inside ? gram(lane_, lane_) : 0.0); // ‖F‖² in its basis
    const bool in_range = total > kLeastSquare && total < kGreatestSquare &&
                          gram(columns_, columns_) < kGreatestSquare;
    const double scale = inside ? vector_[lane_] : 0.0;
    const bool near =
        inside && !(total * near_cut_off(columns_) * (scale * scale) * inverse_ < 1.0);
    const double unit = ::sqrt(inverse_);
    double z = 0.0; // see `reach` of algorithms/companion.h
#pragma unroll 1    // more in flight would take registers, which are short
    for (int i = columns_ - 1; i >= 0; --i) {
      if (lane_ == i)
        z += z < 0.0 ? -unit : unit;
      const double of = __shfl_sync(kAllLanes, z, i);
      if (lane_ < i)
        z -= matrix_[lane_ * kPitch + i] * inverse_ * of;
    }
    const double square = sum_lanes(inside ? z * z : 0.0);
    return in_range && !__any_sync(kAllLanes, near) && noise * kLeastEigenvalue * square < columns_;
  }

  // Entry of the matrix that is factored: with G's first row and column, or without.
  __device__ double gram(int i, int j) const { return matrix_[(first_ + i) * kPitch + first_ + j]; }

  // vᵀ G v of the vector.
  __device__ double quadratic_form() const {
    double product = 0.0;
    if (lane_ < n_)
      for (int j = 0; j < n_; ++j)
        product +=
            vector_[j] * (j <= lane_ ? matrix_[lane_ * kPitch + j] : matrix_[j * kPitch + lane_]);
    const double sum = sum_lanes(lane_ < n_ ? product * vector_[lane_] : 0.0);
    __syncwarp();
    return sum;
  }

  double *matrix_, *vector_;
  int n_, first_, columns_, lane_;
  double inverse_ = 0.0, residual_ = 0.0; // 1 over the lane's pivot; of the last row
};

} // namespace koopcore::cuda
