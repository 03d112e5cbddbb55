// Dense fits and rollouts, one group per thread: the algorithms of csrc/algorithms as they are.
//
// Mirrors cpu/project.cpp. The matrices stand in the work space that the caller passes
// (batch_lanes.h).
#ifdef __CUDACC__
#define KOOPCORE_CALLED __noinline__
#endif
#include "algorithms/dense_rollout.h"
#include "algorithms/projection.h"
#include "cuda/batch_lanes.h"
#include "cuda/stages.h"

namespace koopcore::cuda {
namespace {

__device__ void take(const double *from, int count, BatchReal *to) {
  for (int i = 0; i < count; ++i)
    to[i] = from[i];
}
__device__ void give(const BatchReal *from, int count, double *to) {
  for (int i = 0; i < count; ++i)
    to[i] = from[i];
}

std::int64_t project_rows(int size) { return 5 * size * size + 2 * size + projection_work(size); }

__global__ void __launch_bounds__(kBatch, 1)
    project_batches(std::int64_t groups, ProjectionModel model, ProjectArrays arrays,
                    std::int64_t rows, double *space) {
  model.natural = false; // said here, so that nothing is compiled for it
  const int size = model.size, matrix = size * size;
  BatchReal *a = thread_space(space, rows), *h = a + matrix, *v = h + matrix, *k = v + matrix;
  BatchReal *readout = k + matrix, *g = readout + matrix, *z = g + size, *work = z + size;
  const std::int64_t step = std::int64_t(gridDim.x) * kBatch;
  for (std::int64_t group = std::int64_t(blockIdx.x) * kBatch + threadIdx.x; group < groups;
       group += step) {
    take(arrays.a + group * matrix, matrix, a);
    take(arrays.h + group * matrix, matrix, h);
    take(arrays.g + group * size, size, g);
    BatchReal condition;
    const ProjectionArrays<BatchLanes> to{a, h, g, k, z, readout, v, nullptr};
    const BatchReal rank = koopcore::project<BatchLanes>(model, to, condition, work);
    give(k, matrix, arrays.operators + group * matrix);
    give(v, matrix, arrays.whitener + group * matrix);
    give(z, size, arrays.start + group * size);
    arrays.ranks[group] = std::int64_t(rank.value);
    arrays.condition[group] = condition;
  }
}

std::int64_t dense_rows(int size, int levels) {
  return size * size + size + dense_rollout_work(size, levels);
}

__global__ void __launch_bounds__(kBatch, 1)
    rollout_dense_batches(const double *operators, const double *start, std::int64_t groups,
                          int size, bool affine, int levels, Horizons at, double *states,
                          double *growth, std::int64_t rows, double *space) {
  const int matrix = size * size;
  BatchReal *k = thread_space(space, rows), *z = k + matrix, *work = z + size;
  const std::int64_t step = std::int64_t(gridDim.x) * kBatch;
  for (std::int64_t group = std::int64_t(blockIdx.x) * kBatch + threadIdx.x; group < groups;
       group += step) {
    take(operators + group * matrix, matrix, k);
    take(start + group * size, size, z);
    koopcore::rollout_dense<BatchLanes>(k, z, size, affine, true, at.ascending, at.count, levels,
                                        work,
                                        [&](int i, const BatchReal *state, const BatchReal &grown) {
                                          const std::int64_t row = at.slot[i] * groups + group;
                                          give(state, size, states + row * size);
                                          growth[row] = grown;
                                        });
  }
}

} // namespace

std::int64_t project_space(const Device &device, std::int64_t groups, int size) {
  return space_blocks(device, groups, project_rows(size)) * kBatch * project_rows(size);
}

void project(const Device &device, std::int64_t groups, int size, int rank, double ridge, bool raw,
             const ProjectArrays &arrays, double *space, Stream stream) {
  launch("dense fits", project_batches, unsigned(space_blocks(device, groups, project_rows(size))),
         kBatch, 0, stream, groups, ProjectionModel{size, rank, ridge, raw}, arrays,
         project_rows(size), space);
}

std::int64_t rollout_dense_space(const Device &device, std::int64_t groups, int size,
                                 const Horizons &at) {
  const std::int64_t rows = dense_rows(size, dense_rollout_levels(size, at.ascending, at.count));
  return space_blocks(device, groups, rows) * kBatch * rows;
}

void rollout_dense(const Device &device, const double *operators, const double *start,
                   std::int64_t groups, int size, bool affine, const Horizons &at, double *states,
                   double *growth, double *space, Stream stream) {
  const int levels = dense_rollout_levels(size, at.ascending, at.count);
  const std::int64_t rows = dense_rows(size, levels);
  launch("dense rollout", rollout_dense_batches, unsigned(space_blocks(device, groups, rows)),
         kBatch, 0, stream, operators, start, groups, size, affine, levels, at, states, growth,
         rows, space);
}

} // namespace koopcore::cuda
