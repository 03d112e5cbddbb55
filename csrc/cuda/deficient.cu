// Weights of groups whose window has no full rank, without asking the host: they are projected.
//
// Mirrors `ProjectedFit` of fitted/projected.py; cpu/ has no counterpart, for there the host is at
// hand. A lane looks at the rank of a group; those that are deficient the warp takes one after
// another, all of it together (warp_lanes.h). Neighbours go to different warps: what is deficient,
// a frozen layer or words that did not come, mostly stands side by side. The snapshots of a group
// are read again for a Gram matrix in the group's own unit and in fp64 sums, where the one at hand
// is not, and for the products of the second pass, where that resolves too little.
#ifdef __CUDACC__
#define KOOPCORE_CALLED __noinline__
#endif
#include "algorithms/window_refit.h"
#include "cuda/batch_lanes.h"
#include "cuda/stages.h"
#include "cuda/warp_lanes.h"

namespace koopcore::cuda {
namespace {

// The limits of backends/second_pass.py: u·cond² of float32 and float64 windows and of those whose
// rank is not full, and the share of the largest column, squared, of one that has next to vanished.
constexpr double kUnsureFloat = 0x1p-6, kUnsureDouble = 0x1p-40, kUnsureOfRank = 0x1p-12;
constexpr double kVanishing = 0x1p-30;

constexpr int larger(int a, int b) { return a > b ? a : b; }

// What a warp has of its group, in shared memory where it fits.
struct Room {
  double *gram, *a, *h;            // read until the fit; then the products of the second pass
  double *v, *k, *readout, *g, *z; // the fit
  double *tile;                    // B, x_n and Y of 32 parameters: rows of kBatch numbers
  double *work;                    // of what is called

  __device__ Room(double *at, int n, int size) {
    const int matrix = size * size;
    gram = at, a = gram + packed_size(n), h = a + matrix;
    v = h + matrix, k = v + matrix, readout = k + matrix, g = readout + matrix;
    z = g + size, tile = z + size, work = tile + (n + 1 + size) * kBatch;
  }
  static std::int64_t numbers(int n, int size, int levels) {
    const int fit = larger(pivoted_work(size), window_refit_work(size, n));
    return packed_size(n) + 5 * size * size + 2 * size + (n + 1 + size) * kBatch +
           larger(fit, dense_rollout_work(size, levels));
  }
  // They fit where G, A and H stood: N n + N² + N <= n (n + 1)/2 + 2 N².
  __device__ WindowProducts<WarpLanes> products(int n, int size) const {
    return {gram, gram + size * n, gram + size * n + size * size};
  }
};

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
                           double scale, double *tile, int lane, double *gram) {
  each<WarpLanes>(packed_size(window.n), [&](int e) { gram[e] = 0.0; });
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
                                   double scale, bool affine, const double *v, int rank,
                                   double *tile, int lane, const WindowProducts<WarpLanes> &to) {
  const int n = window.n, first = affine ? 1 : 0, size = n - 1 - first;
  double *y = tile + (n + 1) * kBatch;
  each<WarpLanes>(size * n, [&](int e) { to.across[e] = 0.0; });
  each<WarpLanes>(size * size, [&](int e) { to.inner[e] = 0.0; });
  each<WarpLanes>(size, [&](int e) { to.state[e] = 0.0; });
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
__device__ double entry(const double *gram, int i, int j) {
  return i >= j ? gram[packed_index(i, j)] : gram[packed_index(j, i)];
}

// A = FᵀF, H = FᵀF' and g = Fᵀf'_last in the difference basis.
__device__ void window_matrices(const double *gram, int n, bool affine, double *a, double *h,
                                double *g) {
  const int first = affine ? 1 : 0, size = n - 1 - first;
  each<WarpLanes>(size, [&](int i) {
    for (int j = 0; j < size; ++j) {
      a[i * size + j] = entry(gram, first + i, first + j);
      h[i * size + j] = entry(gram, first + i, first + j + 1);
    }
    if (affine) {
      g[i] = entry(gram, first + i, n - 1);
      return;
    }
    h[i * size] += entry(gram, i, 0);
    double sum = 0.0;
    for (int j = 0; j < n; ++j)
      sum += entry(gram, i, j);
    g[i] = sum;
  });
}

// Weights (n) on B of a whitened state, all 1 where they diverged; returns whether they did.
__device__ bool put_weights(const double *v, const double *state, int size, bool affine,
                            double *weights) {
  const int first = affine ? 2 : 1;
  bool diverged = false;
  each<WarpLanes>(size, [&](int i) {
    double c = affine ? 1.0 : 0.0;
    for (int k = 0; k < size; ++k)
      c += v[i * size + k] * state[k];
    weights[first + i] = c;
    diverged = diverged || !(::fabs(c) <= kWeightLimit);
    if (i == 0) {
      weights[0] = affine ? 1.0 : c;
      if (affine)
        weights[1] = 1.0;
    }
  });
  diverged = any_lane(diverged);
  if (diverged)
    each<WarpLanes>(size + first, [&](int i) { weights[i] = 1.0; });
  return diverged;
}

// Whether the largest of G's diagonal, from column `first` on, has lost digits or overflows.
__device__ bool in_range(const double *gram, int first, int end) {
  double largest = 0.0;
  for (int i = first; i < end; ++i)
    largest = gram[packed_index(i, i)] <= largest ? largest : gram[packed_index(i, i)];
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
__device__ bool vanishing(const double *gram, int n, bool affine) {
  double newest = 0.0, largest = 0.0; // squares
  for (int i = affine ? 1 : 0; i < n; ++i) {
    largest = ::fmax(largest, gram[packed_index(i, i)]);
    for (int j = affine ? n : 0; j < n; ++j)
      newest += entry(gram, i, j);
  }
  return (affine ? gram[packed_index(n - 1, n - 1)] : newest) <= kVanishing * largest;
}

// The two large algorithms, each a function of its own: inlined into the kernel with all else they
// took the compiler a minute.
struct Projected {
  double rank, condition;
};
__device__ __noinline__ Projected project_group(int size, bool affine,
                                                const ProjectionArrays<WarpLanes> &to,
                                                double *work) {
  Projected made;
  made.rank =
      project_pivoted<WarpLanes>(ProjectionModel{size, 0, 0.0, !affine}, to, made.condition, work);
  return made;
}
__device__ __noinline__ void refit_group(const WindowProducts<WarpLanes> &products, int n,
                                         bool affine, const ProjectionArrays<WarpLanes> &to,
                                         double *work) {
  refit_window<WarpLanes>(products, n, affine, to, work);
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

// What the groups of a launch have in common. `noise` is that of the Gram matrices at hand.
struct Deficient {
  bool affine;
  double noise;
  int levels;
  Horizons at;
  double *weights, *growth;
};

// One group, by the whole warp. A group whose squares leave float64 has a Gram matrix in a unit of
// its own here: weights have no unit.
__device__ void fit_group(const Window &window, const Groups &groups, std::int64_t group,
                          const double *grams, const Deficient &how, const Room &room, int lane) {
  const int n = window.n, first = how.affine ? 1 : 0, size = n - 1 - first;
  const double *given = grams + group / kBatch * kBatch * packed_size(n) + group % kBatch;
  each<WarpLanes>(packed_size(n), [&](int e) { room.gram[e] = given[e * kBatch]; });
  const bool far =
      window.is_double && !(in_range(room.gram, 0, n) && in_range(room.gram, first, n - 1));
  double scale = 1.0;
  if (far || how.noise > 1.0) {
    if (window.is_double)
      scale = unit_of(window, groups, group, how.affine, room.tile, lane);
    exact_gram(window, groups, group, scale, room.tile, lane, room.gram);
    __syncwarp();
  }
  window_matrices(room.gram, n, how.affine, room.a, room.h, room.g);
  const bool vanished = vanishing(room.gram, n, how.affine);
  const ProjectionArrays<WarpLanes> to{room.a, room.h,       room.g, room.k,
                                       room.z, room.readout, room.v, nullptr};
  const Projected made = project_group(size, how.affine, to, room.work);
  if (made.rank > 0.0 &&
      (vanished || too_little(window.is_double, made.rank == size, made.condition))) {
    const WindowProducts<WarpLanes> products = room.products(n, size);
    window_products_of(window, groups, group, scale, how.affine, room.v, int(made.rank), room.tile,
                       lane, products);
    __syncwarp();
    refit_group(products, n, how.affine, to, room.work);
  }
  koopcore::rollout_dense<WarpLanes>(
      room.k, room.z, size, how.affine, true, how.at.ascending, how.at.count, how.levels, room.work,
      [&](int i, const double *state, double grown) {
        const std::int64_t row = how.at.slot[i] * groups.count + group;
        const bool diverged = put_weights(room.v, state, size, how.affine, how.weights + row * n);
        if (lane == 0)
          how.growth[row] = diverged ? HUGE_VAL : grown;
      });
}

// `numbers`: of a warp's part of `space`, or 0 where it has its room in shared memory.
__global__ void __launch_bounds__(kBatch, 1)
    deficient_groups(Window window, Groups groups, const double *grams, const std::int64_t *ranks,
                     Deficient how, std::int64_t numbers, double *space) {
  KOOPCORE_SHARED(shared);
  const int n = window.n, size = n - 1 - int(how.affine), lane = threadIdx.x;
  double *own = numbers > 0 ? space + blockIdx.x * numbers : reinterpret_cast<double *>(shared);
  const Room room(own, n, size);
  const std::int64_t blocks = gridDim.x;
  for (std::int64_t base = blockIdx.x; base < groups.count; base += blocks * kBatch) {
    const std::int64_t group = base + lane * blocks;
    bool mine = group < groups.count && ranks[group] != size;
    if (mine && how.noise <= 1.0 && !window.is_double &&
        rests(lane_of(grams + group / kBatch * kBatch * packed_size(n), int(group % kBatch)), n)) {
      for (int h = 0; h < how.at.count; ++h)
        keep_newest(n, how.at.slot[h] * groups.count + group, how.weights, how.growth);
      mine = false;
    }
    for (unsigned left = __ballot_sync(kAllLanes, mine); left != 0; left &= left - 1)
      fit_group(window, groups, base + (__ffs(int(left)) - 1) * blocks, grams, how, room, lane);
  }
}

struct Shape {
  std::int64_t numbers; // a warp's
  unsigned blocks;
  bool is_shared;
};
// Eight warps a multiprocessor, which is what their registers allow. An odd number of them: groups
// that are deficient at equal distances, units of equal layers, go to different ones.
Shape shape_of(const Device &device, std::int64_t groups, int n, int size, int levels) {
  const std::int64_t numbers = Room::numbers(n, size, levels);
  const std::int64_t blocks = (8 * device.processors) | 1, room = (std::int64_t(1) << 28) / 8;
  const bool is_shared = std::size_t(8 * numbers) <= device.shared_memory;
  const std::int64_t fitting = is_shared || blocks * numbers <= room ? blocks : room / numbers;
  return {numbers, blocks_for(groups, fitting > 0 ? fitting : 1), is_shared};
}

} // namespace

std::int64_t deficient_space(const Device &device, std::int64_t groups, int n, bool affine,
                             const Horizons &at) {
  const int size = n - 1 - int(affine);
  const Shape shape =
      shape_of(device, groups, n, size, dense_rollout_levels(size, at.ascending, at.count));
  return shape.is_shared ? 0 : shape.blocks * shape.numbers;
}

std::size_t deficient_bytes(int n) { return std::size_t(8 * Room::numbers(n, n - 1, 0)); }

void roll_deficient(const Device &device, const Window &window, const Groups &groups,
                    const double *gram, const std::int64_t *rank, bool affine, double noise,
                    const Horizons &at, double *weights, double *growth, double *space,
                    Stream stream) {
  const int size = window.n - 1 - int(affine);
  const int levels = dense_rollout_levels(size, at.ascending, at.count);
  const Shape shape = shape_of(device, groups.count, window.n, size, levels);
  launch("fits of deficient groups", deficient_groups, shape.blocks, kBatch,
         shape.is_shared ? 8 * shape.numbers : 0, stream, window, groups, gram, rank,
         Deficient{affine, noise, levels, at, weights, growth}, shape.is_shared ? 0 : shape.numbers,
         space);
}

} // namespace koopcore::cuda
