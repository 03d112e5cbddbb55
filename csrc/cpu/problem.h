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

// Horizons T >= 1 (or stops) in ascending order, and which row of the outputs each belongs to.
struct Horizons {
  const std::int64_t *ascending;
  const int *slot;
  int count;
};

// Where predictions go: row h of parameter j at data + h·row + j·step, in bytes.
struct Output {
  char *data;
  std::ptrdiff_t row, step;
  bool is_double;
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
};

struct RolloutJob {
  const double *coefficients; // (groups, columns)
  std::int64_t groups;
  int columns;
  bool affine;
  Horizons horizons;
  double *weights; // (n_horizons, groups, n)
  double *growth;  // (n_horizons, groups)
};

// Pieces that are combined in one call, at most.
constexpr int kPiecesTogether = 8;

struct CombineJob {
  Window window;
  Groups groups;
  const double *weights; // (n_horizons, weight_rows, n)
  std::int64_t weight_rows;
  int n_horizons;
  Output out; // (n_horizons, size)
};

struct MomentsJob {
  Window window;
  Groups groups; // all of m parameters
  int m;
  bool affine;
  Horizons stops;
  double *out; // (n_stops, groups, 2, m, m)
};

struct ProjectJob {
  int size; // N
  int rank; // 0 keeps all
  double ridge;
  bool raw;
  const double *a, *h; // (groups, N, N), a group every a_step or h_step numbers
  std::ptrdiff_t a_step, h_step;
  const double *g;              // (groups, N)
  double *operators, *whitener; // (groups, N, N)
  double *start;                // (groups, N)
  std::int64_t *ranks;          // (groups,)
  double *condition;            // (groups,)
};

struct DenseRolloutJob {
  const double *operators, *start; // (groups, r, r), (groups, r)
  std::int64_t groups;
  int size;
  bool affine;
  Horizons horizons;
  double *states; // (n_horizons, groups, r)
  double *growth; // (n_horizons, groups)
};

struct FeatureFitJob {
  Window window;
  Groups groups; // all of m parameters
  int m;
  bool affine;
  int holdout;
  double *operators, *whitener, *readout; // (groups, m, m), or null: not kept
  double *start;                          // (groups, m), likewise
  std::int64_t *ranks;                    // (groups,)
  double *condition, *residual, *hindcast;
  Horizons horizons; // predicted at once, into `out`
  Output out;        // (n_horizons, size)
};

struct FeatureEndpointJob {
  Window window;
  Groups groups; // all of m parameters
  int m, rank;
  bool affine;
  const double *operators, *start, *readout; // (groups, r, r), (groups, r), (groups, m, r)
  Horizons horizons;
  Output out; // (n_horizons, size)
};

struct GatherJob {
  const char *const *rows;
  int n_rows;
  std::ptrdiff_t step; // bytes
  bool is_double;
  Groups groups; // all of m parameters
  int m;
  double *out; // (n_rows, groups, m)
};

struct ScatterJob {
  const double *values; // (n_rows, groups, m)
  int n_rows;
  Groups groups; // all of m parameters
  int m;
  Output out; // (n_rows, size)
};

// The kernels of one instruction set. Each works on one batch or piece in the calling thread; the
// scratch sizes are in doubles, the scratch is aligned to a cache line.
struct Kernels {
  int lanes; // groups that a batch takes at most
  int (*gram_entries)(int n);
  void (*gram_map)(int n, std::int32_t *map);
  std::size_t (*gram_scratch)(int n);
  void (*gram_piece)(const Window &, const Groups &, Piece, double *entries, double *scratch);
  bool (*gram_lanes)(const Window &, const Groups &, std::int64_t first, const std::int32_t *map,
                     double *lanes, double *scratch);
  void (*interleave)(const double *const *groups, const std::int32_t *map, int entries,
                     double *lanes);
  void (*separate)(const double *lanes, int entries, int count, double *out);
  std::size_t (*solve_scratch)(int n);
  void (*solve_batch)(const SolveJob &, const double *lanes, std::int64_t first, int count,
                      double *scratch);
  std::size_t (*rollout_scratch)(int columns);
  void (*rollout_batch)(const RolloutJob &, std::int64_t first, int count, double *scratch);
  std::size_t (*combine_scratch)(int n, int n_horizons);
  void (*combine_pieces)(const CombineJob &, const Piece *, const std::int64_t *weight_rows,
                         int count, double *scratch);
  std::size_t (*moments_scratch)(int m);
  void (*moments_batch)(const MomentsJob &, std::int64_t first, int count, double *scratch);
  std::size_t (*project_scratch)(int size);
  void (*project_batch)(const ProjectJob &, std::int64_t first, int count, double *scratch);
  std::size_t (*rollout_dense_scratch)(int size, const Horizons &horizons);
  void (*rollout_dense_batch)(const DenseRolloutJob &, std::int64_t first, int count,
                              double *scratch);
  std::size_t (*feature_fit_scratch)(int m, const Horizons &horizons);
  void (*feature_fit_batch)(const FeatureFitJob &, std::int64_t first, int count, double *scratch);
  std::size_t (*feature_endpoint_scratch)(int m, int rank, const Horizons &horizons);
  void (*feature_endpoint_batch)(const FeatureEndpointJob &, std::int64_t first, int count,
                                 double *scratch);
  void (*gather_groups)(const GatherJob &, std::int64_t first, std::int64_t end);
  void (*scatter_groups)(const ScatterJob &, std::int64_t first, std::int64_t end);
};

} // namespace koopcore::cpu
