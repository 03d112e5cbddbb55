// The whole fit of W small groups while their matrices are in the cache, and their endpoints.
//
// What feature_gram, project, rollout_dense and the read-out do one after the other.
#include "cpu/accumulate.h"
#include "cpu/kernels.h"
#include "cpu/transposed.h"
#include "koopcore/dense_rollout.h"
#include "koopcore/projection.h"

namespace koopcore::cpu::KOOPCORE_ISA {

namespace {

struct FitWork {
  Vec *a, *h, *v, *k;                    // (m, m)
  Vec *readout;                          // (m, m) H V
  Vec *g, *z, *held, *state, *predicted; // (m)
  Vec *rest;
};

constexpr int kMostHoldoutLevels = 8;

std::size_t fit_work(int m) {
  const int rollout = dense_rollout_work(m, kMostHoldoutLevels), whitening = projection_work(m);
  return std::size_t(5 * m * m + 5 * m + (rollout > whitening ? rollout : whitening));
}

// A and H from the sums; reflected coordinates that hold only rounding are silenced, as in
// `silence_rounding` of fitted/feature.py.
void unpack_sums(const Moments &sums, int m, bool affine, FitWork &work) {
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < m; ++j) {
      const Vec entry = j <= i ? sums.c[i * m + j] : sums.c[j * m + i];
      work.a[i * m + j] = entry;
      work.h[i * m + j] = entry + sums.e[i * m + j];
    }
  if (affine)
    return;
  Vec trace{};
  for (int i = 0; i < m; ++i)
    trace += work.a[i * m + i];
  const Vec floor = trace * (16.0 * 0x1p-52 * (16.0 * 0x1p-52));
  for (int j = 0; j < m; ++j) {
    const IntVec noise = work.a[j * m + j] <= floor;
    if (!SimdLanes::any(noise))
      continue;
    for (int i = 0; i < m; ++i) {
      work.a[i * m + j] = noise ? Vec{} : work.a[i * m + j];
      work.a[j * m + i] = noise ? Vec{} : work.a[j * m + i];
      work.h[i * m + j] = noise ? Vec{} : work.h[i * m + j];
    }
  }
}

// V, K, z and H V for the start vector g; returns the rank.
Vec fit_sums(int m, FitWork &work, Vec &condition) {
  const ProjectionModel model{m, 0, 0.0, false};
  const Vec rank = whiten<SimdLanes>(work.a, model, work.v, condition, work.rest);
  project_operator<SimdLanes>(work.v, work.h, work.g, m, work.k, work.z, work.readout);
  return rank; // project_operator leaves H V in its work space
}

Vec norm_of_difference(const Vec *a, const Vec *b, int m) {
  Vec square{};
  for (int i = 0; i < m; ++i)
    square += (a[i] - b[i]) * (a[i] - b[i]);
  return SimdLanes::sqrt(square);
}

template <class T>
void fit_of(const FeatureFitJob &job, std::int64_t first, int count, double *scratch) {
  const int m = job.m, matrix = m * m;
  const std::int64_t kept = job.window.n - job.holdout;
  const bool hindcast = kept - 1 - int(job.affine) >= 1;
  const std::int64_t stops[2] = {kept, job.window.n};
  Vec *at = reinterpret_cast<Vec *>(scratch + accumulation_scratch(m));
  FitWork work{};
  Vec **const squares[] = {&work.a, &work.h, &work.v, &work.k, &work.readout};
  Vec **const vectors[] = {&work.g, &work.z, &work.held, &work.state, &work.predicted};
  for (Vec **square : squares) {
    *square = at;
    at += matrix;
  }
  for (Vec **vector : vectors) {
    *vector = at;
    at += m;
  }
  work.rest = at;
  Vec error = Vec{} + __builtin_nan("");
  const auto after = [&](int stop, const Moments &sums) {
    const bool last = !hindcast || stop == 1;
    unpack_sums(sums, m, job.affine, work);
    for (int i = 0; i < m; ++i)
      work.g[i] = sums.newest[i];
    Vec condition;
    const Vec rank = fit_sums(m, work, condition);
    if (!last) {
      const std::int64_t horizon = job.holdout;
      int levels = dense_rollout_levels(m, &horizon, 1);
      levels = levels < kMostHoldoutLevels ? levels : kMostHoldoutLevels;
      rollout_dense<SimdLanes>(work.k, work.z, m, job.affine, &horizon, 1, levels, work.rest,
                               [&](int, const Vec *state, const Vec &) {
                                 for (int i = 0; i < m; ++i)
                                   work.state[i] = state[i];
                               });
      apply<SimdLanes>(work.readout, m, work.state, work.predicted);
      for (int i = 0; i < m; ++i) // x_{n-holdout} - x_n
        work.held[i] =
            gather_at<T>(job.window.rows[kept - 1], sums.offset + i * kLanes) - sums.last[i];
      Vec movement{};
      for (int i = 0; i < m; ++i)
        movement += work.held[i] * work.held[i];
      movement = SimdLanes::sqrt(movement);
      for (int i = 0; i < m; ++i)
        work.state[i] = job.affine ? -work.held[i] : Vec{};
      if (!job.affine)
        work.state[0] = -sums.reflection.norm;
      const Vec missed = norm_of_difference(work.predicted, work.state, m);
      error = movement > 0.0 ? missed / movement : Vec{};
      return;
    }
    for (int i = 0; i < m; ++i) // Vᵀ f of the newest column of F
      work.state[i] = Vec{};
    for (int i = 0; i < m; ++i)
      for (int k = 0; k < m; ++k)
        work.state[k] += work.v[i * m + k] * (sums.newest[i] - sums.change[i]);
    apply<SimdLanes>(work.readout, m, work.state, work.predicted);
    const Vec residual = norm_of_difference(work.predicted, sums.newest, m);
    from_lanes(work.k, matrix, count, matrix, job.operators + first * matrix);
    from_lanes(work.v, matrix, count, matrix, job.whitener + first * matrix);
    from_lanes(work.readout, matrix, count, matrix, job.readout + first * matrix);
    from_lanes(work.z, m, count, m, job.start + first * m);
    for (int lane = 0; lane < count; ++lane) {
      job.ranks[first + lane] = std::int64_t(rank[lane]);
      job.condition[first + lane] = condition[lane];
      job.residual[first + lane] = residual[lane];
      job.hindcast[first + lane] = error[lane];
    }
  };
  accumulate<T>(job.window, job.groups, job.affine, m, stops + !hindcast, hindcast ? 2 : 1, first,
                count, scratch, after);
}

} // namespace

std::size_t feature_fit_scratch(int m) { return accumulation_scratch(m) + fit_work(m) * kLanes; }

void feature_fit_batch(const FeatureFitJob &job, std::int64_t first, int count, double *scratch) {
  (job.window.is_double ? fit_of<double> : fit_of<float>)(job, first, count, scratch);
}

} // namespace koopcore::cpu::KOOPCORE_ISA
