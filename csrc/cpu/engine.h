// The stages of _cpu over raw pointers: checks, tasks, threads; the kernels do the arithmetic.
#pragma once

#include "cpu/problem.h"

namespace koopcore::cpu {

// G = BᵀB of every group, packed lower by rows: out (groups, n(n+1)/2).
void gram(const Kernels &kernels, const Window &window, const Groups &groups, double *out);

// The companion fit of every group from packed Gram matrices (groups, n(n+1)/2).
void solve(const Kernels &kernels, const double *gram, std::int64_t groups, int n, bool affine,
           int holdout, const CompanionArrays &out);

// gram and solve of W groups after each other, so that Gram matrices never leave the cache; with
// horizons also rollout and combine, into `out`: small groups are then read from memory once.
void gram_solve(const Kernels &kernels, const Window &window, const Groups &groups,
                const SolveJob &job, const Horizons &horizons, const Output &out);

void rollout(const Kernels &kernels, const RolloutJob &job);

void combine(const Kernels &kernels, const CombineJob &job);

// rollout and combine of W groups after each other, so that the weights never leave the cache.
void companion_endpoint(const Kernels &kernels, const Window &window, const Groups &groups,
                        const double *coefficients, bool affine, const Horizons &horizons,
                        const Output &out);

// The dense stages (dense.cpp).
void feature_gram(const Kernels &kernels, const MomentsJob &job);
void project(const Kernels &kernels, const ProjectJob &job, std::int64_t groups);
void rollout_dense(const Kernels &kernels, const DenseRolloutJob &job);
void feature_fit(const Kernels &kernels, const FeatureFitJob &job);
void feature_endpoint(const Kernels &kernels, const FeatureEndpointJob &job);
// size: parameters in a snapshot.
void gather(const Kernels &kernels, const GatherJob &job, std::int64_t size);
void scatter(const Kernels &kernels, const ScatterJob &job, std::int64_t size);

} // namespace koopcore::cpu
