// The kernels that every instruction set provides; compiled once per instruction set.
#pragma once

#include "cpu/problem.h"

namespace koopcore::cpu::KOOPCORE_ISA {

int gram_entries(int n);
void gram_map(int n, std::int32_t *map);
std::size_t gram_scratch(int n);
void gram_piece(const Window &w, const Groups &groups, Piece piece, double *entries,
                double *scratch);
std::size_t solve_scratch(int n);
void solve_batch(const SolveJob &job, const double *const *entries, std::int64_t first, int count,
                 double *scratch);
std::size_t rollout_scratch(int columns);
void rollout_batch(const RolloutJob &job, std::int64_t first, int count, double *scratch);
std::size_t combine_scratch(int n, int n_horizons);
void combine_piece(const CombineJob &job, std::int64_t group, Piece piece, double *scratch);
std::size_t moments_scratch(int m);
void moments_batch(const MomentsJob &job, std::int64_t first, int count, double *scratch);
std::size_t project_scratch(int size);
void project_batch(const ProjectJob &job, std::int64_t first, int count, double *scratch);
std::size_t rollout_dense_scratch(int size, const std::int64_t *horizons, int n_horizons);
void rollout_dense_batch(const DenseRolloutJob &job, std::int64_t first, int count,
                         double *scratch);
void gather_groups(const GatherJob &job, std::int64_t first, std::int64_t end);
void scatter_groups(const ScatterJob &job, std::int64_t first, std::int64_t end);

extern const Kernels kernels;

} // namespace koopcore::cpu::KOOPCORE_ISA
