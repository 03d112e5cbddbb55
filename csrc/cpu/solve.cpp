// Companion fits and rollouts of W groups at a time: one group per lane of the vector registers.
//
// Mirrors cuda/solve.cu: the algorithms of csrc/algorithms as they are.
#include "algorithms/companion.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace koopcore::cpu::KOOPCORE_ISA {

void interleave(const double *const *groups, const std::int32_t *map, int entries, double *lanes) {
  Vec *out = reinterpret_cast<Vec *>(lanes);
  int i = 0;
  for (; i + kLanes <= entries; i += kLanes) {
    Vec block[kLanes];
    for (int lane = 0; lane < kLanes; ++lane)
      __builtin_memcpy(&block[lane], groups[lane] + i, sizeof(Vec));
    transpose(block);
    for (int e = 0; e < kLanes; ++e)
      if (map[i + e] >= 0)
        out[map[i + e]] = block[e];
  }
  for (; i < entries; ++i)
    if (map[i] >= 0)
      for (int lane = 0; lane < kLanes; ++lane)
        out[map[i]][lane] = groups[lane][i];
}

void separate(const double *lanes, int entries, int count, double *out) {
  for (int i = 0; i < entries; ++i)
    for (int lane = 0; lane < count; ++lane)
      out[std::ptrdiff_t(lane) * entries + i] = lanes[i * kLanes + lane];
}

std::size_t solve_scratch(int n) { return std::size_t(n + companion_work(n)) * kLanes; }

void solve_batch(const SolveJob &job, const double *lanes, std::int64_t first, int count,
                 double *scratch) {
  const int columns = job.n - 1 - int(job.affine);
  const Vec *gram = reinterpret_cast<const Vec *>(lanes);
  Vec *coefficients = reinterpret_cast<Vec *>(scratch);
  const CompanionFit<SimdLanes> fit = fit_companion<SimdLanes>(gram, job.n, job.affine, job.holdout,
                                                               coefficients, coefficients + job.n);
  from_lanes(coefficients, columns, count, columns, job.out.coefficients + first * columns);
  for (int lane = 0; lane < count; ++lane) {
    const std::int64_t group = first + lane;
    job.out.rank[group] = std::int64_t(fit.rank[lane]);
    job.out.residual[group] = fit.residual[lane];
    job.out.condition[group] = fit.condition[lane];
    job.out.hindcast[group] = fit.hindcast[lane];
  }
}

std::size_t rollout_scratch(const RolloutJob &job) {
  return std::size_t(2 * job.columns + 2 + rollout_work(job.columns)) * kLanes;
}

void rollout_batch(const RolloutJob &job, std::int64_t first, int count, double *scratch) {
  const int columns = job.columns, n = columns + 1 + int(job.affine);
  Vec *a = reinterpret_cast<Vec *>(scratch), *weights = a + columns;
  to_lanes(job.coefficients + first * columns, columns, count, columns, a);
  rollout<SimdLanes>(a, columns, job.affine, job.horizons.ascending, job.horizons.count, weights,
                     weights + n, [&](int i, const Vec *w, const Vec &growth) {
                       const std::int64_t at = job.horizons.slot[i] * job.groups + first;
                       from_lanes(w, n, count, n, job.weights + at * n);
                       for (int lane = 0; lane < count; ++lane)
                         job.growth[at + lane] = growth[lane];
                     });
}

} // namespace koopcore::cpu::KOOPCORE_ISA
