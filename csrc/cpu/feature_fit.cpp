// The whole fit of W small groups while their matrices are in the cache, and their endpoints.
//
// What feature_gram, project, rollout_dense and the read-out do one after the other.
#include "cpu/kernels.h"
#include "cpu/small_endpoint.h"
#include "cpu/transposed.h"
#include "algorithms/projection.h"

namespace koopcore::cpu::KOOPCORE_ISA {

namespace {

struct FitWork {
  Vec *h, *k, *readout, *v;                      // (m, m)
  Vec *g, *z, *held, *state, *predicted, *probe; // (m)
  Vec *rest;
};

constexpr int kMostHoldoutLevels = 8;

std::size_t fit_work(int m, const Horizons &horizons) {
  const std::size_t parts[] = {std::size_t(dense_rollout_work(m, kMostHoldoutLevels)),
                               std::size_t(projection_work(m)),
                               small_endpoint_work(m, m, horizons)};
  std::size_t most = 0;
  for (std::size_t part : parts)
    most = part > most ? part : most;
  return std::size_t(4 * m * m + 6 * m) + most;
}

FitWork share_out(Vec *at, int m) {
  FitWork work{};
  Vec **const squares[] = {&work.h, &work.k, &work.readout, &work.v};
  Vec **const vectors[] = {&work.g, &work.z, &work.held, &work.state, &work.predicted, &work.probe};
  for (Vec **square : squares) {
    *square = at;
    at += m * m;
  }
  for (Vec **vector : vectors) {
    *vector = at;
    at += m;
  }
  work.rest = at;
  return work;
}

// H from the sums; A is `sums.c`, of which the lower triangle is enough.
void unpack_sums(const Moments &sums, int m, Vec *h) {
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j <= i; ++j)
      h[i * m + j] = sums.c[i * m + j] + sums.e[i * m + j];
    for (int j = i + 1; j < m; ++j)
      h[i * m + j] = sums.c[j * m + i] + sums.e[i * m + j];
  }
}

Vec norm_of_difference(const Vec *a, const Vec *b, int m) {
  Vec square{};
  for (int i = 0; i < m; ++i)
    square += (a[i] - b[i]) * (a[i] - b[i]);
  return SimdLanes::sqrt(square);
}

// The relative error of predicting the newest snapshot from the shorter window, whose fit `work`
// is.
template <class T> Vec hindcast_of(const FeatureFitJob &job, const Moments &sums, FitWork &work) {
  const int m = job.m;
  const std::int64_t horizon = job.holdout;
  int levels = dense_rollout_levels(m, &horizon, 1);
  levels = levels < kMostHoldoutLevels ? levels : kMostHoldoutLevels;
  rollout_dense<SimdLanes>(work.k, work.z, m, job.affine, false, &horizon, 1, levels, work.rest,
                           [&](int, const Vec *state, const Vec &) {
                             apply<SimdLanes>(work.readout, m, m, state, work.predicted);
                           });
  const char *held_row = job.window.rows[job.window.n - job.holdout - 1];
  Vec movement{};
  for (int i = 0; i < m; ++i) { // x_{n-holdout} - x_n
    work.held[i] = gather_at<T>(held_row, sums.offset + i * kLanes) - sums.last[i];
    movement += work.held[i] * work.held[i];
    work.state[i] = job.affine ? -work.held[i] : Vec{};
  }
  if (!job.affine)
    work.state[0] = -sums.reflection.norm;
  const Vec missed = norm_of_difference(work.predicted, work.state, m);
  return movement > 0.0 ? missed / SimdLanes::sqrt(movement) : Vec{};
}

void keep_operators(const FeatureFitJob &job, const FitWork &work, std::int64_t first, int count) {
  const int m = job.m, matrix = m * m;
  from_lanes(work.k, matrix, count, matrix, job.operators + first * matrix);
  from_lanes(work.v, matrix, count, matrix, job.whitener + first * matrix);
  from_lanes(work.readout, matrix, count, matrix, job.readout + first * matrix);
  from_lanes(work.z, m, count, m, job.start + first * m);
}

template <class T>
void fit_of(const FeatureFitJob &job, std::int64_t first, int count, double *scratch) {
  const int m = job.m;
  const std::int64_t kept = job.window.n - job.holdout;
  const bool hindcast = kept - 1 - int(job.affine) >= 1, keep = job.operators != nullptr;
  const std::int64_t stops[2] = {kept, job.window.n};
  FitWork work = share_out(reinterpret_cast<Vec *>(scratch + accumulation_scratch(m)), m);
  Vec error = Vec{} + __builtin_nan("");
  const auto after = [&](int stop, const Moments &sums) {
    const bool last = !hindcast || stop == 1;
    unpack_sums(sums, m, work.h);
    for (int i = 0; i < m; ++i) {
      work.g[i] = sums.newest[i];
      work.probe[i] = sums.newest[i] - sums.change[i]; // the newest column of F
    }
    Vec condition;
    const ProjectionArrays<SimdLanes> arrays{sums.c,
                                             work.h,
                                             work.g,
                                             work.k,
                                             work.z,
                                             work.readout,
                                             last && keep ? work.v : nullptr,
                                             last ? work.probe : nullptr};
    // With fewer columns than parameters the rank is theirs, whatever rounding adds.
    const int columns = int(stops[stop + !hindcast]) - 1 - int(job.affine);
    // Float32 snapshots carry noise far above the rounding of their moments: with columns to
    // spare, few groups are deficient.
    const bool natural = !job.window.is_double && columns > m;
    const ProjectionModel model{m, columns < m ? columns : 0, 0.0, false, natural};
    const Vec rank = project<SimdLanes>(model, arrays, condition, work.rest);
    if (!last) {
      error = hindcast_of<T>(job, sums, work);
      return;
    }
    apply<SimdLanes>(work.readout, m, m, work.probe, work.predicted);
    const Vec residual = norm_of_difference(work.predicted, sums.newest, m);
    for (int lane = 0; lane < count; ++lane) {
      job.ranks[first + lane] = std::int64_t(rank[lane]);
      job.condition[first + lane] = condition[lane];
      job.residual[first + lane] = residual[lane];
      job.hindcast[first + lane] = error[lane];
    }
    if (keep)
      keep_operators(job, work, first, count);
    if (job.horizons.count > 0)
      write_endpoints({m, m, job.affine, work.k, work.z, work.readout, sums.last, sums.reflection},
                      job.groups, first, count, job.horizons, job.out, work.rest);
  };
  accumulate<T>(job.window, job.groups, job.affine, m, stops + !hindcast, hindcast ? 2 : 1, first,
                count, scratch, after);
}

} // namespace

std::size_t feature_fit_scratch(int m, const Horizons &horizons) {
  return accumulation_scratch(m) + fit_work(m, horizons) * kLanes;
}

void feature_fit_batch(const FeatureFitJob &job, std::int64_t first, int count, double *scratch) {
  (job.window.is_double ? fit_of<double> : fit_of<float>)(job, first, count, scratch);
}

} // namespace koopcore::cpu::KOOPCORE_ISA
