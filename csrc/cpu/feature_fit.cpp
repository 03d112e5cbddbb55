// The whole fit of W small groups while their matrices are in the cache, and their endpoints.
//
// What feature_gram, project, rollout_dense and the read-out do one after the other. cuda/ has no
// counterpart: there these stages stay apart (cuda/features.cu, cuda/project.cu).
#include "algorithms/dense_rollout.h"
#include "algorithms/projection.h"
#include "cpu/accumulate.h"
#include "cpu/kernels.h"

namespace koopcore::cpu::KOOPCORE_ISA {

namespace {

// Operators of groups of m parameters and rank at most r, one group per lane.
struct SmallOperators {
  int m, r;
  bool affine;
  const Vec *k, *z, *readout;       // (r, r), (r), (m, r)
  const Vec *last;                  // (m) x_n
  Reflection<SimdLanes> reflection; // of the linear model
};

std::size_t endpoint_work(int m, int r, const Horizons &horizons) {
  const int levels = dense_rollout_levels(r, horizons.ascending, horizons.count);
  return std::size_t(2 * m + dense_rollout_work(r, levels));
}

// The columns of W groups of one row of the output, kept finite.
template <class T>
void store_columns(const Vec *values, const std::ptrdiff_t *offset, int m, int count, char *row) {
  for (int i = 0; i < m; ++i) {
    const Narrow<T> narrowed = narrow<T>(clip<T>(values[i]));
    for (int lane = 0; lane < count; ++lane) {
      const T one = narrowed[lane];
      __builtin_memcpy(row + offset[i * kLanes + lane], &one, sizeof one);
    }
  }
}

// x_{n+T} of the first `count` lanes at every horizon. A lane that diverged, whose state grew past
// kWeightLimit, is given its last snapshot. work: endpoint_work.
void write_endpoints(const SmallOperators &of, const Groups &groups, std::int64_t first, int count,
                     const Horizons &horizons, const Output &out, Vec *work) {
  const int m = of.m, r = of.r;
  Vec *y = work;
  auto *to = reinterpret_cast<std::ptrdiff_t *>(y + m);
  find_offsets(groups, out.step, first, count, to);
  const int levels = dense_rollout_levels(r, horizons.ascending, horizons.count);
  const Vec limit = SimdLanes::broadcast(kWeightLimit);
  const auto emit = [&](int h, const Vec *state, const Vec &) {
    IntVec diverged{};
    for (int i = 0; i < r; ++i)
      diverged |= ~(SimdLanes::abs(state[i]) <= limit); // a NaN too
    apply<SimdLanes>(of.readout, m, r, state, y);
    Vec along{};
    if (!of.affine)
      for (int i = 0; i < m; ++i)
        along += y[i] * of.reflection.v[i];
    along *= of.reflection.twice;
    for (int i = 0; i < m; ++i) {
      const Vec moved = of.affine ? y[i] + of.last[i] : y[i] - along * of.reflection.v[i];
      y[i] = diverged ? of.last[i] : moved;
    }
    char *row = out.data + horizons.slot[h] * out.row;
    (out.is_double ? store_columns<double> : store_columns<float>)(y, to, m, count, row);
  };
  rollout_dense<SimdLanes>(of.k, of.z, r, of.affine, false, horizons.ascending, horizons.count,
                           levels, work + 2 * m, emit);
}

struct FitWork {
  Vec *h, *k, *readout, *v;                      // (m, m)
  Vec *g, *z, *held, *state, *predicted, *probe; // (m)
  Vec *rest;
};

constexpr int kMostHoldoutLevels = 8;

std::size_t fit_work(int m, const Horizons &horizons) {
  const std::size_t parts[] = {std::size_t(dense_rollout_work(m, kMostHoldoutLevels)),
                               std::size_t(projection_work(m)), endpoint_work(m, m, horizons)};
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

void put_operators(const FeatureFitJob &job, const FitWork &work, std::int64_t first, int count) {
  const int m = job.m, matrix = m * m;
  from_lanes(work.k, matrix, count, matrix, job.operators + first * matrix);
  from_lanes(work.v, matrix, count, matrix, job.whitener + first * matrix);
  from_lanes(work.readout, matrix, count, matrix, job.readout + first * matrix);
  from_lanes(work.z, m, count, m, job.start + first * m);
}

template <class T>
void fit_of(const FeatureFitJob &job, std::int64_t first, int count, double *scratch) {
  const int m = job.m;
  const std::int64_t shorter = job.window.n - job.holdout;
  const bool hindcast = shorter - 1 - int(job.affine) >= 1, wanted = job.operators != nullptr;
  const std::int64_t stops[2] = {shorter, job.window.n};
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
                                             last && wanted ? work.v : nullptr,
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
    if (wanted)
      put_operators(job, work, first, count);
    if (job.horizons.count > 0)
      write_endpoints({m, m, job.affine, work.k, work.z, work.readout, sums.last, sums.reflection},
                      job.groups, first, count, job.horizons, job.out, work.rest);
  };
  accumulate<T>(job.window, job.groups, job.affine, m, stops + !hindcast, hindcast ? 2 : 1, first,
                count, scratch, after);
}

} // namespace

std::size_t feature_fit_scratch(const FeatureFitJob &job) {
  return accumulation_scratch(job.m) + fit_work(job.m, job.horizons) * kLanes;
}

void feature_fit_batch(const FeatureFitJob &job, std::int64_t first, int count, double *scratch) {
  (job.window.is_double ? fit_of<double> : fit_of<float>)(job, first, count, scratch);
}

std::size_t feature_endpoint_scratch(const FeatureEndpointJob &job) {
  const int m = job.m, r = job.rank;
  return (std::size_t(r * r + r + m * r + 3 * m) + endpoint_work(m, r, job.horizons)) * kLanes;
}

void feature_endpoint_batch(const FeatureEndpointJob &job, std::int64_t first, int count,
                            double *scratch) {
  const int m = job.m, r = job.rank;
  Vec *k = reinterpret_cast<Vec *>(scratch), *z = k + r * r, *readout = z + r;
  Vec *last = readout + m * r, *v = last + m;
  auto *from = reinterpret_cast<std::ptrdiff_t *>(v + m);
  to_lanes(job.operators + first * r * r, r * r, count, r * r, k);
  to_lanes(job.start + first * r, r, count, r, z);
  to_lanes(job.readout + first * m * r, m * r, count, m * r, readout);
  find_offsets(job.groups, job.window.step, first, count, from);
  const char *newest = job.window.rows[job.window.n - 1];
  for (int i = 0; i < m; ++i)
    last[i] = job.window.is_double ? gather_at<double>(newest, from + i * kLanes)
                                   : gather_at<float>(newest, from + i * kLanes);
  SmallOperators of{m, r, job.affine, k, z, readout, last, {v, Vec{}, Vec{}}};
  of.reflection.set(last, m);
  write_endpoints(of, job.groups, first, count, job.horizons, job.out, v + 2 * m);
}

} // namespace koopcore::cpu::KOOPCORE_ISA
