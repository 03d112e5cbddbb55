// What the kernels work on: a window of snapshots, groups of parameters, and pieces of groups.
#pragma once

#include <cstddef>
#include <cstdint>

namespace koopcore::cpu {

// Snapshot k of parameter j is at rows[k] + j·step, oldest first.
struct Window {
  const char *const *rows;
  int n;
  std::ptrdiff_t step; // bytes
  std::int64_t size;   // parameters in a snapshot
  bool is_double;
};

// The partition: group g owns the segments ptr[g] … ptr[g+1] - 1; a segment covers the parameters
// start + stride·(0 … length - 1).
struct Groups {
  const std::int64_t *ptr, *start, *length, *stride;
  std::int64_t count;
};

// `count` consecutive parameters of one group, from position `within` of `segment`.
struct Piece {
  std::int64_t segment, within, count;
};

// Outputs of the companion fit, one entry (or row of n - 1 - affine) per group.
struct CompanionArrays {
  double *coefficients;
  std::int64_t *rank;
  double *residual, *condition, *hindcast;
};

struct SolveJob {
  int n;
  bool affine;
  int holdout;
  CompanionArrays out;
  // Gram entry `i` of a group stands in the packed lower triangle at map[i]; -1 is padding.
  const std::int32_t *map;
  int entries;
};

struct RolloutJob {
  const double *coefficients; // (groups, columns)
  std::int64_t groups;
  int columns;
  bool affine;
  const std::int64_t *horizons; // ascending
  const int *slot;              // where in the outputs horizon i goes
  int n_horizons;
  double *weights; // (n_horizons, groups, n)
  double *growth;  // (n_horizons, groups)
};

struct CombineJob {
  Window window;
  Groups groups;
  const double *weights; // (n_horizons, groups, n)
  int n_horizons;
  char *out; // (n_horizons, size)
  std::ptrdiff_t out_row, out_step;
  bool out_is_double;
};

// The kernels of one instruction set. Each works on one batch or piece in the calling thread; the
// scratch sizes are in doubles, the scratch is aligned to a cache line.
struct Kernels {
  int lanes; // groups that solve_batch and rollout_batch take at once
  int (*gram_entries)(int n);
  void (*gram_map)(int n, std::int32_t *map);
  std::size_t (*gram_scratch)(int n);
  void (*gram_piece)(const Window &, const Groups &, Piece, double *entries, double *scratch);
  std::size_t (*solve_scratch)(int n);
  void (*solve_batch)(const SolveJob &, const double *const *entries, std::int64_t first, int count,
                      double *scratch);
  std::size_t (*rollout_scratch)(int columns);
  void (*rollout_batch)(const RolloutJob &, std::int64_t first, int count, double *scratch);
  std::size_t (*combine_scratch)(int n, int n_horizons);
  void (*combine_piece)(const CombineJob &, std::int64_t group, Piece, double *scratch);
};

} // namespace koopcore::cpu
