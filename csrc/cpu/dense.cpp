// The dense stages of _cpu over raw pointers: the feature side, and projected fits of either side.
#include "cpu/engine.h"
#include "cpu/plan.h"
#include "cpu/threads.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace koopcore::cpu {

namespace {

// Calls batch(first, count, scratch) for all groups, W at a time, a few batches to a task.
template <class Batch>
void for_each_lanes(const Kernels &kernels, std::int64_t groups, double nanoseconds,
                    std::size_t scratch_size, Batch &&batch) {
  const std::int64_t lanes = kernels.lanes, per_task = 4 * lanes;
  for_each_task((groups + per_task - 1) / per_task, nanoseconds, scratch_size,
                [&](std::int64_t task, double *scratch) {
                  const std::int64_t end = std::min(groups, (task + 1) * per_task);
                  for (std::int64_t first = task * per_task; first < end; first += lanes)
                    batch(first, int(std::min(lanes, end - first)), scratch);
                });
}

void check_equal_sizes(const Groups &groups, int m) {
  for (std::int64_t g = 0; g < groups.count; ++g)
    if (group_size(groups, g) != m)
      throw std::invalid_argument("group " + std::to_string(g) + " has " +
                                  std::to_string(group_size(groups, g)) +
                                  " parameters and group 0 " + std::to_string(m) +
                                  "; this stage needs groups of equal size");
}

} // namespace

void feature_gram(const Kernels &kernels, const MomentsJob &job) {
  check_groups(job.groups, job.window.size);
  check_equal_sizes(job.groups, job.m);
  const double m = job.m, groups = double(job.groups.count);
  for_each_lanes(kernels, job.groups.count, groups * job.window.n * m * (1.0 + 0.1 * m),
                 kernels.moments_scratch(job.m),
                 [&](std::int64_t first, int count, double *scratch) {
                   kernels.moments_batch(job, first, count, scratch);
                 });
}

void project(const Kernels &kernels, const ProjectJob &job, std::int64_t groups) {
  const double size = job.size;
  for_each_lanes(kernels, groups, double(groups) * size * size * (2.0 + 0.4 * size),
                 kernels.project_scratch(job.size),
                 [&](std::int64_t first, int count, double *scratch) {
                   kernels.project_batch(job, first, count, scratch);
                 });
}

void feature_fit(const Kernels &kernels, const FeatureFitJob &job) {
  check_groups(job.groups, job.window.size);
  check_equal_sizes(job.groups, job.m);
  const double m = job.m, groups = double(job.groups.count);
  for_each_lanes(kernels, job.groups.count,
                 groups * m * (job.window.n * (1.0 + 0.1 * m) + m * (4.0 + 0.3 * m)),
                 kernels.feature_fit_scratch(job.m, job.horizons),
                 [&](std::int64_t first, int count, double *scratch) {
                   kernels.feature_fit_batch(job, first, count, scratch);
                 });
}

void feature_endpoint(const Kernels &kernels, const FeatureEndpointJob &job) {
  check_groups(job.groups, job.window.size);
  check_equal_sizes(job.groups, job.m);
  const double r = job.rank, groups = double(job.groups.count);
  for_each_lanes(kernels, job.groups.count, groups * r * r * (4.0 + 2.0 * job.horizons.count),
                 kernels.feature_endpoint_scratch(job.m, job.rank, job.horizons),
                 [&](std::int64_t first, int count, double *scratch) {
                   kernels.feature_endpoint_batch(job, first, count, scratch);
                 });
}

void rollout_dense(const Kernels &kernels, const DenseRolloutJob &job) {
  const Horizons &at = job.horizons;
  const double steps = at.count == 0 ? 0.0 : std::min(double(at.ascending[at.count - 1]), 200.0);
  for_each_lanes(kernels, job.groups, double(job.groups) * job.size * job.size * 0.1 * steps,
                 kernels.rollout_dense_scratch(job.size, job.horizons),
                 [&](std::int64_t first, int count, double *scratch) {
                   kernels.rollout_dense_batch(job, first, count, scratch);
                 });
}

namespace {

constexpr std::int64_t kGroupsPerCopy = 1024;

template <class Copy>
void copy_groups(const Groups &groups, int m, int rows, std::int64_t size, Copy &&copy) {
  check_groups(groups, size);
  check_equal_sizes(groups, m);
  for_each_task((groups.count + kGroupsPerCopy - 1) / kGroupsPerCopy,
                double(groups.count) * m * rows, 0, [&](std::int64_t task, double *) {
                  const std::int64_t first = task * kGroupsPerCopy;
                  copy(first, std::min(groups.count, first + kGroupsPerCopy));
                });
}

} // namespace

void gather(const Kernels &kernels, const GatherJob &job, std::int64_t size) {
  copy_groups(job.groups, job.m, job.n_rows, size, [&](std::int64_t first, std::int64_t end) {
    kernels.gather_groups(job, first, end);
  });
}

void scatter(const Kernels &kernels, const ScatterJob &job, std::int64_t size) {
  copy_groups(job.groups, job.m, job.n_rows, size, [&](std::int64_t first, std::int64_t end) {
    kernels.scatter_groups(job, first, end);
  });
}

} // namespace koopcore::cpu
