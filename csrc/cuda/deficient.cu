// Weights of groups whose window has no full rank, without asking the host: they are projected.
//
// Mirrors `ProjectedFit` of fitted/projected.py; cpu/ has no counterpart, for there the host is at
// hand. A warp has 32 groups, one a lane. Groups of full rank, which most are, cost one look at
// their rank. What needs the snapshots of a group again the whole warp does, one group after
// another: a Gram matrix in the group's own unit and in fp64 sums, where the one at hand is not,
// and the products of the second pass, where that resolves too little.
#ifdef __CUDACC__
#define KOOPCORE_CALLED __noinline__
#endif
#include "algorithms/dense_rollout.h"
#include "algorithms/window_refit.h"
#include "cuda/batch_lanes.h"
#include "cuda/stages.h"
#include "cuda/warp.h"

namespace koopcore::cuda {
namespace {

// The limits of backends/second_pass.py: u·cond² of float32 and float64 windows and of those whose
// rank is not full, and the share of the largest column, squared, of one that has next to vanished.
constexpr double kUnsureFloat = 0x1p-6, kUnsureDouble = 0x1p-40, kUnsureOfRank = 0x1p-12;
constexpr double kVanishing = 0x1p-30;

// Numbers of a lane, apart from those of a tile.
std::int64_t lane_rows(int n, int size, int levels) {
  const int fit = projection_work(size);
  const int again = window_products(size, n) + window_refit_work(size, n);
  return 5 * size * size + 3 * size + 2 + (fit > again ? fit : again) +
         dense_rollout_work(size, levels);
}
// Rows of a tile: B, x_n and Y.
int tile_rows(int n, int size) { return n + 1 + size; }

std::int64_t deficient_rows(int n, int size, int levels) {
  return lane_rows(n, size, levels) + tile_rows(n, size);
}

// Another lane's numbers, from where the lane's own begin.
__device__ BatchReal *of_lane(BatchReal *own, int lane, int other) {
  return reinterpret_cast<BatchReal *>(reinterpret_cast<double *>(own) + (other - lane));
}

// What stands in a lane is shown to all: a power of two, a rank.
__device__ double shown(double x, int lane) { return __shfl_sync(kAllLanes, x, lane); }

// The snapshots of one group, by the whole warp: 32 parameters at a time, one a lane. `tile` is
// then B in its first n rows and x_n in the next, times `scale`; rows have kBatch numbers.
template <class Use>
__device__ void each_tile(const Window &window, const Groups &groups, std::int64_t group,
                          double scale, double *tile, int lane, Use &&use) {
  for (std::int64_t s = groups.ptr[group]; s < groups.ptr[group + 1]; ++s)
    for (std::int64_t position = lane; position - lane < groups.length[s]; position += kBatch) {
      const bool inside = position < groups.length[s];
      const std::int64_t offset = (groups.start[s] + position * groups.stride[s]) * window.step;
      double x = 0.0;
      for (int k = 0; k < window.n; ++k) {
        const double before = x;
        if (inside) {
          const char *p = window.at(k) + offset;
          x = window.is_double ? *reinterpret_cast<const double *>(p)
                               : double(*reinterpret_cast<const float *>(p));
        }
        // Neither the difference of large numbers overflows, nor a number beside small differences.
        tile[k * kBatch + lane] = scale < 1.0 ? scale * x - scale * before : scale * (x - before);
      }
      tile[window.n * kBatch + lane] = scale * x;
      use();
      __syncwarp(); // others may still read the tile
    }
}

// Calls put(i, j, Σ a_i b_j) for the rows a and b of a tile, in one lane each.
template <class Put>
__device__ void multiply_rows(const double *a, int a_rows, const double *b, int b_rows, int lane,
                              Put &&put) {
  for (int i = 0; i < a_rows; i += 8)
    for (int j = 0; j < b_rows; j += 8) {
      const int left = i + lane / 4, right = j + lane / 4, column = j + 2 * (lane & 3);
      double sum = 0.0, next = 0.0;
      for (int p = lane & 3; p < kBatch; p += 4)
        multiply_add_8x4x8(left < a_rows ? a[left * kBatch + p] : 0.0,
                           right < b_rows ? b[right * kBatch + p] : 0.0, sum, next);
      if (left < a_rows && column < b_rows)
        put(left, column, sum);
      if (left < a_rows && column + 1 < b_rows)
        put(left, column + 1, next);
    }
}

// The power of two that brings a group's largest number in columns of F near 1; 1 if there is none.
__device__ double unit_of(const Window &window, const Groups &groups, std::int64_t group,
                          bool affine, double *tile, int lane) {
  double largest = 0.0;
  each_tile(window, groups, group, 0.25, tile, lane, [&] {
    for (int k = affine ? 1 : 0; k < window.n; ++k)
      largest = ::fmax(largest, ::fabs(tile[k * kBatch + lane]));
  });
  largest = max_lanes(largest);
  if (!(largest > 0.0 && largest < HUGE_VAL))
    return 1.0;
  const int exponent = -2 - ::ilogb(largest);
  return ::ldexp(1.0, exponent < 1023 ? exponent : 1023);
}

// G of one group in fp64 sums, the snapshots times `scale`.
__device__ void exact_gram(const Window &window, const Groups &groups, std::int64_t group,
                           double scale, double *tile, int lane, BatchReal *gram) {
  for (int e = lane; e < packed_size(window.n); e += kBatch)
    gram[e] = 0.0;
  __syncwarp();
  each_tile(window, groups, group, scale, tile, lane, [&] {
    __syncwarp();
    multiply_rows(tile, window.n, tile, window.n, lane, [&](int i, int j, double x) {
      if (j <= i)
        gram[packed_index(i, j)] += x;
    });
  });
}

// The products of one group with Y = B V, whose first `rank` columns are not zero.
__device__ void window_products_of(const Window &window, const Groups &groups, std::int64_t group,
                                   double scale, bool affine, const BatchReal *v, int rank,
                                   double *tile, int lane, const WindowProducts<BatchLanes> &to) {
  const int n = window.n, first = affine ? 1 : 0, size = n - 1 - first;
  double *y = tile + (n + 1) * kBatch;
  for (int e = lane; e < size * n; e += kBatch)
    to.across[e] = 0.0;
  for (int e = lane; e < size * size; e += kBatch)
    to.inner[e] = 0.0;
  for (int e = lane; e < size; e += kBatch)
    to.state[e] = 0.0;
  __syncwarp();
  each_tile(window, groups, group, scale, tile, lane, [&] {
    for (int k = 0; k < rank; ++k) {
      double sum = 0.0;
      for (int i = 0; i < size; ++i)
        sum += v[i * size + k] * tile[(first + i) * kBatch + lane];
      y[k * kBatch + lane] = sum;
    }
    __syncwarp();
    multiply_rows(y, rank, tile, n + 1 + rank, lane, [&](int i, int j, double x) {
      if (j < n)
        to.across[i * n + j] += x;
      else if (j == n)
        to.state[i] += x;
      else
        to.inner[i * size + j - n - 1] += x;
    });
  });
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
__device__ __noinline__ bool put_weights(const BatchReal *v, const BatchReal *state, int size,
                                         bool affine, double *weights) {
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

// Whether the largest of G's diagonal, from column `first` on, has lost digits or overflows.
__device__ bool in_range(const BatchReal *gram, int first, int end) {
  double largest = 0.0;
  for (int i = first; i < end; ++i)
    largest = gram[packed_index(i, i)] <= largest ? largest : double(gram[packed_index(i, i)]);
  return largest > kLeastSquare && largest < kGreatestSquare;
}

// Whether a Gram matrix resolves too little of what `project` found in it.
__device__ bool too_little(bool is_double, bool whole, double condition) {
  double limit = is_double ? kUnsureDouble : kUnsureFloat;
  if (!whole && limit > kUnsureOfRank)
    limit = kUnsureOfRank;
  return condition < HUGE_VAL && condition * condition * 0x1p-53 > limit;
}

// Whether the newest column has come down to next to nothing.
__device__ bool vanishing(const BatchReal *gram, int n, bool affine) {
  double newest = 0.0, largest = 0.0; // squares
  for (int i = affine ? 1 : 0; i < n; ++i) {
    largest = ::fmax(largest, double(gram[packed_index(i, i)]));
    for (int j = affine ? n : 0; j < n; ++j)
      newest += entry(gram, i, j);
  }
  return (affine ? double(gram[packed_index(n - 1, n - 1)]) : newest) <= kVanishing * largest;
}

// The products of a window stand first in a lane's work space.
__device__ WindowProducts<BatchLanes> products_at(BatchReal *work, int n, int size) {
  return {work, work + size * n, work + size * n + size * size};
}

// The two large algorithms, each a function of its own: inlined into the kernel with all else they
// took the compiler a minute.
struct Projected {
  double rank, condition;
};
__device__ __noinline__ Projected project_lane(int size, bool affine,
                                               const ProjectionArrays<BatchLanes> &to,
                                               BatchReal *work) {
  BatchReal condition;
  const double rank =
      koopcore::project<BatchLanes>(ProjectionModel{size, 0, 0.0, !affine}, to, condition, work);
  return {rank, condition};
}
__device__ __noinline__ void refit_lane(int n, bool affine, const ProjectionArrays<BatchLanes> &to,
                                        BatchReal *work) {
  const int size = n - (affine ? 2 : 1);
  refit_window<BatchLanes>(products_at(work, n, size), n, affine, to,
                           work + window_products(size, n));
}

// Whether nothing in the window moves: a frozen row, a unit that is dead, a word that did not come.
// Of float32 snapshots in fp64 sums, whose squares cannot vanish.
__device__ bool rests(const BatchReal *gram, int n) {
  for (int k = 1; k < n; ++k)
    if (gram[packed_index(k, k)] != 0.0)
      return false;
  return true;
}

// The newest snapshot as a prediction: all weights on B are 1.
__device__ void keep_newest(int n, std::int64_t row, double *weights, double *growth) {
  for (int k = 0; k < n; ++k)
    weights[row * n + k] = 1.0;
  growth[row] = 1.0;
}

// A group whose squares leave float64 has a Gram matrix in a unit of its own here: weights have no
// unit. `noise` is that of the Gram matrices at hand.
__global__ void __launch_bounds__(kBatch, 1)
    deficient_batches(Window window, Groups groups, const double *grams, const std::int64_t *ranks,
                      bool affine, double noise, int levels, Horizons at, double *weights,
                      double *growth, std::int64_t rows, std::int64_t lane_size, double *space) {
  const int n = window.n, first = affine ? 1 : 0, size = n - 1 - first, matrix = size * size;
  const int lane = threadIdx.x;
  BatchReal *a = thread_space(space, rows), *h = a + matrix;
  BatchReal *v = h + matrix, *k = v + matrix, *readout = k + matrix, *g = readout + matrix;
  BatchReal *z = g + size, *work = z + size;
  double *tile = space + (std::int64_t(blockIdx.x) * rows + lane_size) * kBatch;
  const ProjectionArrays<BatchLanes> to{a, h, g, k, z, readout, v, nullptr};
  const std::int64_t batches = (groups.count + kBatch - 1) / kBatch;
  for (std::int64_t batch = blockIdx.x; batch < batches; batch += gridDim.x) {
    const std::int64_t group = batch * kBatch + lane;
    const BatchReal *gram = lane_of(grams + batch * kBatch * packed_size(n), lane);
    bool mine = group < groups.count && ranks[group] != size;
    if (mine && noise <= 1.0 && !window.is_double && rests(gram, n)) {
      for (int h = 0; h < at.count; ++h)
        keep_newest(n, at.slot[h] * groups.count + group, weights, growth);
      mine = false;
    }
    if (!__any_sync(kAllLanes, mine))
      continue;
    double scale = 1.0;
    const bool far =
        window.is_double && mine && !(in_range(gram, 0, n) && in_range(gram, first, n - 1));
    const bool anew = far || (mine && noise > 1.0);
    unsigned int left = __ballot_sync(kAllLanes, anew);
    for (; left != 0; left &= left - 1) {
      const int other = __ffs(int(left)) - 1;
      double unit = 1.0;
      if (window.is_double)
        unit = unit_of(window, groups, batch * kBatch + other, affine, tile, lane);
      exact_gram(window, groups, batch * kBatch + other, unit, tile, lane,
                 of_lane(work, lane, other));
      if (lane == other)
        scale = unit;
    }
    __syncwarp();
    double rank = 0.0;
    bool again = false;
    if (mine) {
      if (anew)
        gram = work;
      window_matrices(gram, n, affine, a, h, g);
      again = vanishing(gram, n, affine);
      const Projected made = project_lane(size, affine, to, work);
      rank = made.rank;
      const double condition = made.condition;
      again = rank > 0.0 && (again || too_little(window.is_double, rank == size, condition));
    }
    left = __ballot_sync(kAllLanes, again);
    for (; left != 0; left &= left - 1) {
      const int other = __ffs(int(left)) - 1;
      window_products_of(window, groups, batch * kBatch + other, shown(scale, other), affine,
                         of_lane(v, lane, other), int(shown(rank, other)), tile, lane,
                         products_at(of_lane(work, lane, other), n, size));
    }
    __syncwarp();
    if (again)
      refit_lane(n, affine, to, work);
    if (mine)
      koopcore::rollout_dense<BatchLanes>(
          k, z, size, affine, true, at.ascending, at.count, levels, work,
          [&](int i, const BatchReal *state, const BatchReal &grown) {
            const std::int64_t row = at.slot[i] * groups.count + group;
            const bool diverged = put_weights(v, state, size, affine, weights + row * n);
            growth[row] = diverged ? HUGE_VAL : double(grown);
          });
  }
}

// Few blocks: most of them look at ranks and find nothing, and work space is for those that do.
unsigned deficient_blocks(const Device &device, std::int64_t groups, std::int64_t rows) {
  const std::int64_t blocks = space_blocks(device, groups, rows), most = 2 * device.processors;
  return unsigned(blocks < most ? blocks : most);
}

} // namespace

std::int64_t deficient_space(const Device &device, std::int64_t groups, int n, bool affine,
                             const Horizons &at) {
  const int size = n - 1 - int(affine);
  const std::int64_t rows =
      deficient_rows(n, size, dense_rollout_levels(size, at.ascending, at.count));
  return deficient_blocks(device, groups, rows) * kBatch * rows;
}

void roll_deficient(const Device &device, const Window &window, const Groups &groups,
                    const double *gram, const std::int64_t *rank, bool affine, double noise,
                    const Horizons &at, double *weights, double *growth, double *space,
                    Stream stream) {
  const int size = window.n - 1 - int(affine);
  const int levels = dense_rollout_levels(size, at.ascending, at.count);
  const std::int64_t rows = deficient_rows(window.n, size, levels);
  launch("fits of deficient groups", deficient_batches,
         deficient_blocks(device, groups.count, rows), kBatch, 0, stream, window, groups, gram,
         rank, affine, noise, levels, at, weights, growth, rows, lane_rows(window.n, size, levels),
         space);
}

} // namespace koopcore::cuda
