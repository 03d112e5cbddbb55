// Dense fits, their rollouts and the moments of small groups, one group per thread.
//
// Mirrors cpu/project.cpp and cpu/features.cpp: the algorithms of csrc/algorithms on the lanes of
// batch_lanes.h, whose matrices stand in the work space that the caller passes.
#include "cuda/batch_lanes.h"
#include "cuda/numbers.h"
#include "cuda/stages.h"
#include "algorithms/dense_rollout.h"
#include "algorithms/moments.h"
#include "algorithms/projection.h"

namespace koopcore::cuda {
namespace {

constexpr int kBlockRows = 8; // snapshots whose products are summed together

__device__ void take(const double *from, int count, BatchReal *to) {
  for (int i = 0; i < count; ++i)
    to[i] = from[i];
}
__device__ void give(const BatchReal *from, int count, double *to) {
  for (int i = 0; i < count; ++i)
    to[i] = from[i];
}

__device__ BatchReal *own_space(double *space, std::int64_t rows) {
  return lane_of(space + std::int64_t(blockIdx.x) * kBatch * rows, threadIdx.x);
}

std::int64_t project_rows(int size) { return 5 * size * size + 2 * size + projection_work(size); }

__global__ void __launch_bounds__(kBatch, 1)
    project_batches(std::int64_t groups, ProjectionModel model, ProjectArrays arrays,
                    std::int64_t rows, double *space) {
  const int size = model.size, matrix = size * size;
  BatchReal *a = own_space(space, rows), *h = a + matrix, *v = h + matrix, *k = v + matrix;
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
  BatchReal *k = own_space(space, rows), *z = k + matrix, *work = z + size;
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

std::int64_t moment_rows(int m) { return 2 * m * m + (2 * kBlockRows + 1) * m + 3 * m; }

// The summed rows y_t of one group: differences, or reflected snapshots.
class SummedRows {
public:
  __device__ SummedRows(const Window &window, const Groups &groups, std::int64_t group, int m,
                        bool affine, BatchReal *work)
      : window_(window), groups_(groups), group_(group), m_(m), affine_(affine), last_(work),
        raw_(work + m), reflection_{work + 2 * m, {}, {}} {
    if (affine) {
      read(next_++, raw_);
    } else {
      read(window.n - 1, last_);
      reflection_.set(last_, m);
    }
  }

  __device__ void take_next(BatchReal *out) {
    read(next_++, out);
    if (affine_) {
      for (int i = 0; i < m_; ++i) {
        const double current = out[i];
        out[i] = current - raw_[i];
        raw_[i] = current;
      }
      return;
    }
    for (int i = 0; i < m_; ++i)
      out[i] -= last_[i];
    reflection_.apply(out, m_);
  }

private:
  __device__ void read(int k, BatchReal *out) const {
    const char *row = window_.at(k);
    const Kind kind = window_.is_double ? kFloat64 : kFloat32;
    for (std::int64_t s = groups_.ptr[group_]; s < groups_.ptr[group_ + 1]; ++s) {
      const char *p = row + groups_.start[s] * window_.step;
      for (std::int64_t i = 0; i < groups_.length[s]; ++i)
        *out++ = read_number(p + i * groups_.stride[s] * window_.step, kind);
    }
  }

  const Window &window_;
  const Groups &groups_;
  std::int64_t group_;
  int m_;
  bool affine_;
  BatchReal *last_, *raw_;
  Reflection<BatchLanes> reflection_;
  int next_ = 0;
};

__device__ void put_moments(const BatchReal *c, const BatchReal *e, int m, double *out) {
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < m; ++j) {
      const double entry = j <= i ? c[i * m + j] : c[j * m + i];
      out[i * m + j] = entry;
      out[m * m + i * m + j] = entry + e[i * m + j];
    }
}

__global__ void __launch_bounds__(kBatch, 1)
    moment_batches(Window window, Groups groups, int m, bool affine, Horizons stops, double *out,
                   std::int64_t rows, double *space) {
  BatchReal *c = own_space(space, rows), *e = c + m * m, *y = e + m * m;
  BatchReal *change = y + (kBlockRows + 1) * m, *work = change + kBlockRows * m;
  const std::int64_t step = std::int64_t(gridDim.x) * kBatch;
  for (std::int64_t group = std::int64_t(blockIdx.x) * kBatch + threadIdx.x; group < groups.count;
       group += step) {
    for (int i = 0; i < 2 * m * m; ++i)
      c[i] = 0.0;
    SummedRows source(window, groups, group, m, affine, work);
    source.take_next(y);
    std::int64_t done = 0; // columns of F that are summed
    for (int s = 0; s < stops.count; ++s) {
      const std::int64_t end = stops.ascending[s] - 1 - int(affine);
      while (done < end) {
        const int some = int(end - done < kBlockRows ? end - done : kBlockRows);
        for (int t = 0; t < some; ++t) {
          BatchReal *now = y + t * m, *next = now + m;
          source.take_next(next);
          for (int i = 0; i < m; ++i)
            change[t * m + i] = next[i] - now[i];
        }
        add_outer<BatchLanes>(y, y, some, m, true, c);
        add_outer<BatchLanes>(change, y, some, m, false, e);
        for (int i = 0; i < m; ++i)
          y[i] = y[some * m + i];
        done += some;
      }
      put_moments(c, e, m, out + ((stops.slot[s] * groups.count + group) * 2) * m * m);
    }
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

std::int64_t feature_gram_space(const Device &device, std::int64_t groups, int m) {
  return space_blocks(device, groups, moment_rows(m)) * kBatch * moment_rows(m);
}

void feature_gram(const Device &device, const Window &window, const Groups &groups, int m,
                  bool affine, const Horizons &stops, double *out, double *space, Stream stream) {
  launch("moments of small groups", moment_batches,
         unsigned(space_blocks(device, groups.count, moment_rows(m))), kBatch, 0, stream, window,
         groups, m, affine, stops, out, moment_rows(m), space);
}

} // namespace koopcore::cuda
