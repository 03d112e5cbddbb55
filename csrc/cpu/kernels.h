// The kernels that every instruction set provides; compiled once per instruction set.
#pragma once

#include "cpu/problem.h"

namespace koopcore::cpu::KOOPCORE_ISA {

int gram_entries(int n);
void gram_map(int n, std::int32_t *map);
std::size_t gram_scratch(int n);
void gram_piece(const Window &w, const Groups &groups, Piece piece, double *entries,
                double *scratch);
// The packed Gram matrices of W groups from `first` on, one group per lane: (n(n+1)/2, W). Returns
// false, and does nothing, unless they are small and of equal size. `map` as from gram_map.
bool gram_lanes(const Window &w, const Groups &groups, std::int64_t first, const std::int32_t *map,
                double *lanes, double *scratch);
// lanes[map[i]] <- entry i of W groups; padding (map[i] < 0) is dropped.
void interleave(const double *const *groups, const std::int32_t *map, int entries, double *lanes);
// (count, entries) from lanes (entries, W).
void separate(const double *lanes, int entries, int count, double *out);
std::size_t solve_scratch(int n);
void solve_batch(const SolveJob &job, const double *lanes, std::int64_t first, int count,
                 double *scratch);
std::size_t rollout_scratch(int columns);
void rollout_batch(const RolloutJob &job, std::int64_t first, int count, double *scratch);
std::size_t combine_scratch(int n, int n_horizons);
void combine_pieces(const CombineJob &job, const Piece *pieces, const std::int64_t *weight_rows,
                    int count, double *scratch);
std::size_t moments_scratch(int m);
void moments_batch(const MomentsJob &job, std::int64_t first, int count, double *scratch);
std::size_t project_scratch(int size);
void project_batch(const ProjectJob &job, std::int64_t first, int count, double *scratch);
std::size_t rollout_dense_scratch(int size, const Horizons &horizons);
void rollout_dense_batch(const DenseRolloutJob &job, std::int64_t first, int count,
                         double *scratch);
std::size_t feature_fit_scratch(int m, const Horizons &horizons);
void feature_fit_batch(const FeatureFitJob &job, std::int64_t first, int count, double *scratch);
std::size_t feature_endpoint_scratch(int m, int rank, const Horizons &horizons);
void feature_endpoint_batch(const FeatureEndpointJob &job, std::int64_t first, int count,
                            double *scratch);
void gather_groups(const GatherJob &job, std::int64_t first, std::int64_t end);
void scatter_groups(const ScatterJob &job, std::int64_t first, std::int64_t end);

extern const Kernels kernels;

} // namespace koopcore::cpu::KOOPCORE_ISA
