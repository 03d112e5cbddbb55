// Weights of groups whose window has no full rank, without asking the host: they are projected.
//
// Mirrors `project_window` and `_weights` of fitted/projected.py, one group per thread; cpu/ has no
// counterpart, for there the host is at hand. Groups of full rank, which most are, cost one look at
// their rank.
#include "algorithms/dense_rollout.h"
#include "algorithms/projection.h"
#include "cuda/batch_lanes.h"
#include "cuda/stages.h"

namespace koopcore::cuda {
namespace {

std::int64_t deficient_rows(int size, int levels) {
  return 5 * size * size + 3 * size + 2 + projection_work(size) + dense_rollout_work(size, levels);
}

// Entry (i, j) of the symmetric matrix whose lower triangle is packed.
__device__ double entry(const BatchReal *gram, int i, int j) {
  return i >= j ? gram[packed_index(i, j)] : gram[packed_index(j, i)];
}

// A = FᵀF, H = FᵀF' and g = Fᵀf'_last in the difference basis.
__device__ void window_matrices(const BatchReal *gram, int n, bool affine, BatchReal *a,
                                BatchReal *h, BatchReal *g) {
  const int first = affine ? 1 : 0, size = n - 1 - first;
  for (int i = 0; i < size; ++i) {
    for (int j = 0; j < size; ++j) {
      a[i * size + j] = entry(gram, first + i, first + j);
      h[i * size + j] = entry(gram, first + i, first + j + 1);
    }
    if (affine) {
      g[i] = entry(gram, first + i, n - 1);
      continue;
    }
    h[i * size] += entry(gram, i, 0);
    double sum = 0.0;
    for (int j = 0; j < n; ++j)
      sum += entry(gram, i, j);
    g[i] = sum;
  }
}

// Weights (n) on B of a whitened state, all 1 where they diverged; returns whether they did.
__device__ bool put_weights(const BatchReal *v, const BatchReal *state, int size, bool affine,
                            double *weights) {
  const int first = affine ? 2 : 1;
  bool diverged = false;
  for (int i = 0; i < size; ++i) {
    double c = affine ? 1.0 : 0.0;
    for (int k = 0; k < size; ++k)
      c += v[i * size + k] * state[k];
    weights[first + i] = c;
    diverged = diverged || !(::fabs(c) <= kWeightLimit);
  }
  weights[0] = affine ? 1.0 : weights[1];
  if (affine)
    weights[1] = 1.0;
  if (diverged)
    for (int i = 0; i < size + first; ++i)
      weights[i] = 1.0;
  return diverged;
}

__global__ void __launch_bounds__(kBatch, 1)
    deficient_batches(const double *gram, const std::int64_t *rank, std::int64_t groups, int n,
                      bool affine, int levels, Horizons at, double *weights, double *growth,
                      std::int64_t rows, double *space) {
  const int size = n - 1 - int(affine), matrix = size * size, lane = threadIdx.x;
  BatchReal *a = thread_space(space, rows), *h = a + matrix;
  BatchReal *v = h + matrix, *k = v + matrix, *readout = k + matrix, *g = readout + matrix;
  BatchReal *z = g + size, *work = z + size;
  const std::int64_t step = std::int64_t(gridDim.x) * kBatch;
  for (std::int64_t group = std::int64_t(blockIdx.x) * kBatch + lane; group < groups;
       group += step) {
    if (rank[group] == size)
      continue;
    window_matrices(lane_of(gram + group / kBatch * kBatch * packed_size(n), lane), n, affine, a, h,
                    g);
    BatchReal condition;
    koopcore::project<BatchLanes>(ProjectionModel{size, 0, 0.0, !affine},
                                  ProjectionArrays<BatchLanes>{a, h, g, k, z, readout, v, nullptr},
                                  condition, work);
    koopcore::rollout_dense<BatchLanes>(
        k, z, size, affine, true, at.ascending, at.count, levels, work,
        [&](int i, const BatchReal *state, const BatchReal &grown) {
          const std::int64_t row = at.slot[i] * groups + group;
          const bool diverged = put_weights(v, state, size, affine, weights + row * n);
          growth[row] = diverged ? HUGE_VAL : double(grown);
        });
  }
}

} // namespace

std::int64_t deficient_space(const Device &device, std::int64_t groups, int n, bool affine,
                             const Horizons &at) {
  const int size = n - 1 - int(affine);
  const std::int64_t rows =
      deficient_rows(size, dense_rollout_levels(size, at.ascending, at.count));
  return space_blocks(device, groups, rows) * kBatch * rows;
}

void roll_deficient(const Device &device, const double *gram, const std::int64_t *rank,
                    std::int64_t groups, int n, bool affine, const Horizons &at, double *weights,
                    double *growth, double *space, Stream stream) {
  const int size = n - 1 - int(affine);
  const int levels = dense_rollout_levels(size, at.ascending, at.count);
  const std::int64_t rows = deficient_rows(size, levels);
  launch("fits of deficient groups", deficient_batches,
         unsigned(space_blocks(device, groups, rows)), kBatch, 0, stream, gram, rank, groups, n,
         affine, levels, at, weights, growth, rows, space);
}

} // namespace koopcore::cuda
