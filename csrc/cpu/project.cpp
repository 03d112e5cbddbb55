// Dense fits and rollouts of W groups at a time: one group per lane of the vector registers.
//
// Mirrors cuda/project.cu: the algorithms of csrc/algorithms as they are.
#include "algorithms/dense_rollout.h"
#include "algorithms/projection.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace koopcore::cpu::KOOPCORE_ISA {

std::size_t project_scratch(const ProjectJob &job) {
  const int size = job.size;
  return std::size_t(5 * size * size + 2 * size + projection_work(size)) * kLanes;
}

void project_batch(const ProjectJob &job, std::int64_t first, int count, double *scratch) {
  const int size = job.size, matrix = size * size;
  Vec *a = reinterpret_cast<Vec *>(scratch), *h = a + matrix, *v = h + matrix, *k = v + matrix;
  Vec *readout = k + matrix, *g = readout + matrix, *z = g + size, *work = z + size;
  const ProjectionModel model{size, job.rank, job.ridge, job.raw, job.ridge > 0.0};
  to_lanes(job.a + first * matrix, matrix, count, matrix, a);
  to_lanes(job.h + first * matrix, matrix, count, matrix, h);
  to_lanes(job.g + first * size, size, count, size, g);
  Vec condition;
  const ProjectionArrays<SimdLanes> arrays{a, h, g, k, z, readout, v, nullptr};
  const Vec rank = project<SimdLanes>(model, arrays, condition, work);
  from_lanes(v, matrix, count, matrix, job.whitener + first * matrix);
  from_lanes(k, matrix, count, matrix, job.operators + first * matrix);
  from_lanes(z, size, count, size, job.start + first * size);
  for (int lane = 0; lane < count; ++lane) {
    job.ranks[first + lane] = std::int64_t(rank[lane]);
    job.condition[first + lane] = condition[lane];
  }
}

std::size_t rollout_dense_scratch(const DenseRolloutJob &job) {
  const int size = job.size;
  const int levels = dense_rollout_levels(size, job.horizons.ascending, job.horizons.count);
  return std::size_t(size * size + size + dense_rollout_work(size, levels)) * kLanes;
}

void rollout_dense_batch(const DenseRolloutJob &job, std::int64_t first, int count,
                         double *scratch) {
  const int size = job.size, matrix = size * size;
  Vec *k = reinterpret_cast<Vec *>(scratch), *z = k + matrix, *work = z + size;
  const int levels = dense_rollout_levels(size, job.horizons.ascending, job.horizons.count);
  to_lanes(job.operators + first * matrix, matrix, count, matrix, k);
  to_lanes(job.start + first * size, size, count, size, z);
  rollout_dense<SimdLanes>(k, z, size, job.affine, true, job.horizons.ascending, job.horizons.count,
                           levels, work, [&](int i, const Vec *state, const Vec &growth) {
                             const std::int64_t at = job.horizons.slot[i] * job.groups + first;
                             from_lanes(state, size, count, size, job.states + at * size);
                             for (int lane = 0; lane < count; ++lane)
                               job.growth[at + lane] = growth[lane];
                           });
}

} // namespace koopcore::cpu::KOOPCORE_ISA
