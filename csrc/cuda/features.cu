// Moments of small groups, one group per thread, and copies of single snapshots by group.
//
// Mirrors cpu/features.cpp: the algorithm of csrc/algorithms on the lanes of batch_lanes.h.
#include "algorithms/moments.h"
#include "cuda/batch_lanes.h"
#include "cuda/numbers.h"
#include "cuda/stages.h"

namespace koopcore::cuda {
namespace {

constexpr int kBlockRows = 8; // snapshots whose products are summed together
constexpr int kThreads = 256; // of a block that copies

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
    reflection_.apply(last_, out, m_);
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
  BatchReal *c = thread_space(space, rows), *e = c + m * m, *y = e + m * m;
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

// Calls take(i, column) for every parameter of the group, i counting them; a warp shares them.
template <class Take>
__device__ void each_parameter(const Groups &groups, std::int64_t group, int lane, Take &&take) {
  std::int64_t i = 0;
  for (std::int64_t s = groups.ptr[group]; s < groups.ptr[group + 1]; ++s) {
    for (std::int64_t k = lane; k < groups.length[s]; k += 32)
      take(i + k, groups.start[s] + k * groups.stride[s]);
    i += groups.length[s];
  }
}

__global__ void __launch_bounds__(kThreads, 4)
    gather_groups(Window window, Groups groups, int m, double *out) {
  const Kind kind = window.is_double ? kFloat64 : kFloat32;
  const std::int64_t step = std::int64_t(gridDim.x) * (kThreads / 32);
  for (std::int64_t g = std::int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
       g < groups.count; g += step)
    each_parameter(groups, g, threadIdx.x & 31, [&](std::int64_t i, std::int64_t column) {
      for (int r = 0; r < window.n; ++r)
        out[(r * groups.count + g) * m + i] =
            read_number(window.at(r) + column * window.step, kind);
    });
}

__global__ void __launch_bounds__(kThreads, 4)
    scatter_groups(Groups groups, int m, const double *values, int n_rows, Output out) {
  const std::int64_t step = std::int64_t(gridDim.x) * (kThreads / 32);
  for (std::int64_t g = std::int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
       g < groups.count; g += step)
    each_parameter(groups, g, threadIdx.x & 31, [&](std::int64_t i, std::int64_t column) {
      for (int r = 0; r < n_rows; ++r)
        write_number(out.data + r * out.row + column * out.step, out.kind,
                     clamp_to(out.kind, values[(r * groups.count + g) * m + i]));
    });
}

} // namespace

std::int64_t feature_gram_space(const Device &device, std::int64_t groups, int m) {
  return space_blocks(device, groups, moment_rows(m)) * kBatch * moment_rows(m);
}

void feature_gram(const Device &device, const Window &window, const Groups &groups, int m,
                  bool affine, const Horizons &stops, double *out, double *space, Stream stream) {
  launch("moments of small groups", moment_batches,
         unsigned(space_blocks(device, groups.count, moment_rows(m))), kBatch, 0, stream, window,
         groups, m, affine, stops, out, moment_rows(m), space);
}

void gather(const Window &window, const Groups &groups, int m, double *out, Stream stream) {
  launch("gathering values by group", gather_groups,
         blocks_for((groups.count + kThreads / 32 - 1) / (kThreads / 32)), kThreads, 0, stream,
         window, groups, m, out);
}

void scatter(const Groups &groups, int m, const double *values, int n_rows, const Output &out,
             Stream stream) {
  launch("scattering values by group", scatter_groups,
         blocks_for((groups.count + kThreads / 32 - 1) / (kThreads / 32)), kThreads, 0, stream,
         groups, m, values, n_rows, out);
}

} // namespace koopcore::cuda
