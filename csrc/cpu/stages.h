// The stages of _cpu over raw pointers: tasks and threads; the kernels do the arithmetic.
//
// Mirrors cuda/stages.h.
#pragma once

#include "cpu/kernels.h"
#include "cpu/threads.h"

#include <algorithm>

namespace koopcore::cpu {

constexpr std::int64_t kBatchesPerTask = 4;

// A stage that is one kernel, `together` groups at a time.
template <class Job> void run(Batch<Job> kernel, const Job &job, std::int64_t together) {
  const std::int64_t groups = job.count(), per_task = kBatchesPerTask * together;
  for_each_task((groups + per_task - 1) / per_task, job.nanoseconds(), kernel.scratch(job),
                [&](std::int64_t task, double *scratch) {
                  const std::int64_t end = std::min(groups, (task + 1) * per_task);
                  for (std::int64_t first = task * per_task; first < end; first += together)
                    kernel.run(job, first, int(std::min(together, end - first)), scratch);
                });
}

// G = BᵀB of every group, packed lower by rows: out (groups, n(n+1)/2).
void gram(const Kernels &kernels, const Window &window, const Groups &groups, double *out);

// The companion fit of every group from packed Gram matrices (groups, n(n+1)/2).
void solve(const Kernels &kernels, const double *gram, std::int64_t groups, const SolveJob &job);

// gram and solve of W groups after each other, so that Gram matrices never leave the cache; with
// horizons also rollout and combine, into `out`: small groups are then read from memory once.
void gram_solve(const Kernels &kernels, const Window &window, const Groups &groups,
                const SolveJob &job, const Horizons &horizons, const Output &out);

void combine(const Kernels &kernels, const CombineJob &job);

// rollout and combine of W groups after each other, so that the weights never leave the cache.
void companion_endpoint(const Kernels &kernels, const Window &window, const Groups &groups,
                        const double *coefficients, bool affine, const Horizons &horizons,
                        const Output &out);

// The fits of groups of equal m, and their endpoints: threads over groups; in long windows also
// over spans of rows, and inside each of a few large groups. Groups for which one pass is not
// enough have a second one.
void feature_fit(const Kernels &kernels, const FeatureFitJob &job);

} // namespace koopcore::cpu
