// The stages of _cuda over device pointers. None of them waits for the device or allocates.
//
// Mirrors cpu/stages.h.
//
// `space` is work space of as many doubles as the stage's function of that name says.
#pragma once

#include "cuda/launch.h"
#include "cuda/problem.h"

namespace koopcore::cuda {

// What the launches need to know of a device.
struct Device {
  int number, processors;
  int architecture, code;    // what it is, and what the code that it runs was compiled for: 90
  std::size_t shared_memory; // bytes that a block may have
};

// Outputs of the companion fit, one entry (or row of n - 1 - affine) per group.
struct CompanionArrays {
  double *coefficients;
  std::int64_t *rank;
  double *residual, *condition, *hindcast;
};

// Blocks of one batch of 32 groups each that have `numbers` of work space per group: as many as
// occupy the device, but no more than a quarter of a gigabyte.
inline std::int64_t space_blocks(const Device &device, std::int64_t groups, std::int64_t numbers) {
  const std::int64_t batches = (groups + kBatch - 1) / kBatch, busy = 8 * device.processors;
  const std::int64_t fitting = (std::int64_t(1) << 28) / (kBatch * 8 * (numbers > 0 ? numbers : 1));
  const std::int64_t most = busy < fitting ? busy : (fitting > 0 ? fitting : 1);
  return batches < most ? (batches > 0 ? batches : 1) : most;
}

// G = BᵀB of every group. `wide`: by blocks of the matrix, in fp64 sums on every device; needed for
// more than kMostWhole snapshots, and of a plan without small groups.
void gram(const Window &window, const Groups &groups, const Plan &plan, const GramLayout &out,
          double *space, bool wide, Stream stream);
std::int64_t gram_space(const Plan &plan, int n);

// The companion fit of every group from Gram matrices side by side. `noise` multiplies the pivot
// tolerance of fp64 sums: 1 for those.
void solve(const Device &device, const double *gram, std::int64_t groups, int n, bool affine,
           int holdout, double noise, const CompanionArrays &out, double *space, Stream stream);
std::int64_t solve_space(const Device &device, std::int64_t groups, int n);
std::size_t solve_bytes(int n); // of shared memory

// weights (n_horizons, groups, n), growth (n_horizons, groups). `last`: the longest horizon.
void rollout(const Device &device, const double *coefficients, std::int64_t groups, int columns,
             bool affine, const Horizons &at, double *weights, double *growth, double *space,
             Stream stream);
std::int64_t rollout_space(const Device &device, std::int64_t groups, int columns, bool affine,
                           std::int64_t last);

// Weights and growth, over those of `rollout`, of the groups that are deficient by the ranks of
// `solve`. The snapshots are read again of groups whose Gram matrix resolves too little or leaves
// the range of squares, and of all deficient ones where `noise` is not 1.
void roll_deficient(const Device &device, const Window &window, const Groups &groups,
                    const double *gram, const std::int64_t *rank, bool affine, double noise,
                    const Horizons &at, double *weights, double *growth, double *space,
                    Stream stream);
std::int64_t deficient_space(const Device &device, std::int64_t groups, int n, bool affine,
                             const Horizons &at);
std::size_t deficient_bytes(int n); // of shared memory of the largest, that of the linear model

// x_n + B (w - 1) at every horizon, from weights (n_horizons, groups.count, n): one read of the
// snapshots for up to eight horizons.
void combine(const Window &window, const Groups &groups, const Plan &plan, const double *weights,
             int n_horizons, const Output &out, const Tensors &parameters, Stream stream);

// How groups are fitted in one pass; see `solve`.
struct OnePass {
  bool affine;
  int holdout;
  double noise;
};

// The companion fit of the groups in `share` and their predictions, from one read of the snapshots:
// for windows of up to 32 snapshots, horizons of up to kDirectSteps, groups whose snapshots fit
// shared memory, and devices whose code has fast fp64 (code.h), else std::invalid_argument. Without
// `coefficients` only ranks are written. Gram matrices of deficient groups go to `gram` (side by
// side), unless that is null; their predictions mean nothing until `combine_deficient`.
void one_pass(const Device &device, const Window &window, const Groups &groups, const Share &share,
              const OnePass &how, const Horizons &at, const CompanionArrays &fields, double *gram,
              const Output &out, const Tensors &parameters, Stream stream);
// of shared memory:
std::size_t one_pass_bytes(int n, int columns, int warps, int horizons, bool is_double);

// `combine` for the groups whose rank is not `columns`.
void combine_deficient(const Window &window, const Groups &groups, const std::int64_t *rank,
                       int columns, const double *weights, int n_horizons, const Output &out,
                       const Tensors &parameters, Stream stream);

// The compute capability that the current device's code was compiled for (90 for 9.0); throws if
// this module has no code for it.
int code_of_device();

// Copies between tensors and a row of `kind` where tensor t stands from start[t] on.
void copy_tensors(const Tensors &tensors, char *row, Kind kind, bool into_row, Stream stream);

// The dense stages; see algorithms/projection.h, moments.h, dense_rollout.h.
struct ProjectArrays {
  const double *a, *h, *g; // (groups, N, N) twice, (groups, N)
  double *operators, *whitener, *start;
  std::int64_t *ranks;
  double *condition;
};
void project(const Device &device, std::int64_t groups, int size, int rank, double ridge, bool raw,
             const ProjectArrays &arrays, double *space, Stream stream);
std::int64_t project_space(const Device &device, std::int64_t groups, int size);

void rollout_dense(const Device &device, const double *operators, const double *start,
                   std::int64_t groups, int size, bool affine, const Horizons &at, double *states,
                   double *growth, double *space, Stream stream);
std::int64_t rollout_dense_space(const Device &device, std::int64_t groups, int size,
                                 const Horizons &at);

// out (n_stops, groups, 2, m, m); `stops` are ascending numbers of snapshots.
void feature_gram(const Device &device, const Window &window, const Groups &groups, int m,
                  bool affine, const Horizons &stops, double *out, double *space, Stream stream);
std::int64_t feature_gram_space(const Device &device, std::int64_t groups, int m);

// Values (n_rows, groups, m) of groups of equal m: from a window, and into an output.
void gather(const Window &window, const Groups &groups, int m, double *out, Stream stream);
void scatter(const Groups &groups, int m, const double *values, int n_rows, const Output &out,
             Stream stream);

} // namespace koopcore::cuda
