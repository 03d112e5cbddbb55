// Predictions x_{n+T} = x_n + B (w - 1): one pass over the snapshots for several horizons.
//
// Mirrors cpu/combine.cpp. A lane takes four neighbouring parameters through all snapshots; sums
// are in fp64. Results go into the rows of an array, or straight into the parameters themselves.
#include "cuda/predictions.h"
#include "cuda/stages.h"

#include <type_traits>

namespace koopcore::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kMostTogether = 8; // horizons of one pass
using Runs = ChunksOf<128, 4>;   // four parameters a lane

// Blocks that shall fit a multiprocessor with H horizons: left to itself, ptxas spills to fit
// one more.
constexpr int resident_blocks(int H) { return H == 1 ? 5 : H == 2 ? 4 : H == 4 ? 3 : 2; }

// H horizons of four parameters; w: (…, n) weights, rows `apart` numbers.
template <class T, int H>
__device__ void combine_four(const Window &window, const Four &four, const double *w,
                             std::int64_t apart, int horizon, const Output &out,
                             const Tensors &parameters, bool aligned) {
  double value[H][4] = {}, previous[4] = {};
#pragma unroll 4
  for (int k = 0; k < window.n; ++k) {
    const Quad<T> x = load_four<T>(window.at(k), four, window.step, aligned);
    double weight[H];
    KOOPCORE_UNROLL
    for (int h = 0; h < H; ++h)
      weight[h] = __ldg(w + h * apart + k) - 1.0;
    KOOPCORE_UNROLL
    for (int s = 0; s < 4; ++s) {
      const double current = double(x.value[s]), step = current - previous[s];
      previous[s] = current;
      KOOPCORE_UNROLL
      for (int h = 0; h < H; ++h)
        value[h][s] += weight[h] * step;
    }
  }
  KOOPCORE_UNROLL
  for (int h = 0; h < H; ++h) {
    KOOPCORE_UNROLL
    for (int s = 0; s < 4; ++s)
      value[h][s] += previous[s];
    store_four(out, parameters, horizon + h, four, value[h]);
  }
}

// The same in pairs of floats, by all lanes of a warp, which split the weights among them: the few
// instructions of fp64 that are left are those. Returns whether this lane's results are as good as
// sums in fp64, and stored: not if a number leaves the range of floats, or no difference is large
// enough for what its products round off to be one.
template <int H>
__device__ bool combine_four_in_pairs(const Window &window, const Four &four, const double *w,
                                      std::int64_t apart, int horizon, const Output &out,
                                      const Tensors &parameters, bool aligned, int lane) {
  TwoFloat value[H][4] = {};
  float previous[4] = {}, largest[4] = {};
  for (int from = 0; from < window.n; from += 32) {
    TwoFloat own[H];
    KOOPCORE_UNROLL
    for (int h = 0; h < H; ++h)
      own[h] =
          TwoFloat::of(from + lane < window.n ? __ldg(w + h * apart + from + lane) - 1.0 : 0.0);
    const int count = window.n - from < 32 ? window.n - from : 32;
#pragma unroll 4
    for (int k = 0; k < count; ++k) {
      const Quad<float> x = load_four<float>(window.at(from + k), four, window.step, aligned);
      TwoFloat weight[H];
      KOOPCORE_UNROLL
      for (int h = 0; h < H; ++h)
        weight[h] = {__shfl_sync(kAllLanes, own[h].hi, k), __shfl_sync(kAllLanes, own[h].lo, k)};
      KOOPCORE_UNROLL
      for (int s = 0; s < 4; ++s) {
        const TwoFloat step = TwoFloat::difference(x.value[s], previous[s]);
        previous[s] = x.value[s];
        largest[s] = fmaxf(largest[s], fabsf(step.hi));
        KOOPCORE_UNROLL
        for (int h = 0; h < H; ++h)
          value[h][s].add_product(weight[h], step);
      }
    }
  }
  bool good = true;
  KOOPCORE_UNROLL
  for (int s = 0; s < 4; ++s) {
    good = good && (largest[s] == 0.0f || largest[s] > 0x1p-90f);
    KOOPCORE_UNROLL
    for (int h = 0; h < H; ++h) {
      value[h][s].add({previous[s], 0.0f});
      good = good && fabsf(value[h][s].hi) <= FLT_MAX; // a NaN is not
    }
  }
  if (good) {
    KOOPCORE_UNROLL
    for (int h = 0; h < H; ++h)
      store_four(out, parameters, horizon + h, four, value[h]);
  }
  return good;
}

// The group's chunks that fall to this warp.
template <class T, int H>
__device__ void combine_chunks(const Window &window, Runs &runs, const double *w,
                               std::int64_t apart, int horizon, const Output &out,
                               const Tensors &parameters, int lane) {
  constexpr bool in_pairs = KOOPCORE_TWO_FLOAT && std::is_same_v<T, float>;
  const bool aligned = rows_aligned<T>(window);
  for (Chunk at; runs.next(at);) {
    const Four four = four_from(at.first, at.stride, at.from + 4 * lane, at.count);
    if constexpr (in_pairs)
      if (combine_four_in_pairs<H>(window, four, w, apart, horizon, out, parameters, aligned, lane))
        continue;
    if (four.bits != 0)
      combine_four<T, H>(window, four, w, apart, horizon, out, parameters, aligned);
  }
}

// Small groups, a warp each, or pieces, a block each.
template <class T, int H>
__global__ void __launch_bounds__(32 * kWarps, resident_blocks(H))
    combine_planned(Window window, Groups groups, Plan plan, bool pieces, const double *weights,
                    int horizon, Output out, Tensors parameters) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const std::int64_t apart = groups.count * window.n;
  for (std::int64_t block = blockIdx.x;; block += gridDim.x) {
    const std::int64_t i = pieces ? block : block * kWarps + warp;
    if (i >= (pieces ? plan.n_pieces : plan.n_small))
      return;
    Piece piece;
    if (pieces) {
      piece = plan.pieces[i];
    } else {
      const std::int64_t group = plan.small == nullptr ? i : plan.small[i];
      piece = {group, groups.ptr[group], 0, INT64_MAX};
    }
    Runs runs(groups, piece.segment, groups.ptr[piece.group + 1], piece.within, piece.count,
              pieces ? warp : 0, pieces ? kWarps : 1);
    combine_chunks<T, H>(window, runs, weights + horizon * apart + piece.group * window.n, apart,
                         horizon, out, parameters, lane);
  }
}

// A warp looks at the ranks of 32 groups and takes the deficient ones, one after another.
template <class T>
__global__ void __launch_bounds__(32 * kWarps, resident_blocks(1))
    combine_where_deficient(Window window, Groups groups, const std::int64_t *rank, int columns,
                            const double *weights, int n_horizons, Output out, Tensors parameters) {
  const int lane = threadIdx.x & 31;
  const std::int64_t step = std::int64_t(gridDim.x) * kWarps, apart = groups.count * window.n;
  const std::int64_t batches = (groups.count + kBatch - 1) / kBatch;
  for (std::int64_t batch = std::int64_t(blockIdx.x) * kWarps + threadIdx.x / 32; batch < batches;
       batch += step) {
    const std::int64_t candidate = batch * kBatch + lane;
    unsigned int left =
        __ballot_sync(kAllLanes, candidate < groups.count && rank[candidate] != columns);
    for (; left != 0; left &= left - 1) {
      const std::int64_t group = batch * kBatch + __ffs(int(left)) - 1;
      for (int h = 0; h < n_horizons; ++h) {
        Runs runs(groups, groups.ptr[group], groups.ptr[group + 1], 0, INT64_MAX, 0, 1);
        combine_chunks<T, 1>(window, runs, weights + h * apart + group * window.n, apart, h, out,
                             parameters, lane);
      }
    }
  }
}

template <class T, int H>
void launch_combine(const Window &window, const Groups &groups, const Plan &plan,
                    const double *weights, int horizon, const Output &out,
                    const Tensors &parameters, Stream stream) {
  const auto run = [&](const char *name, std::int64_t blocks, bool pieces) {
    if (blocks > 0)
      launch(name, combine_planned<T, H>, blocks_for(blocks), 32 * kWarps, 0, stream, window,
             groups, plan, pieces, weights, horizon, out, parameters);
  };
  run("combine of small groups", (plan.n_small + kWarps - 1) / kWarps, false);
  run("combine of large groups", plan.n_pieces, true);
}

template <class T>
void combine_of(const Window &window, const Groups &groups, const Plan &plan, const double *weights,
                int n_horizons, const Output &out, const Tensors &parameters, Stream stream) {
  int h = 0;
  for (; h + kMostTogether <= n_horizons; h += kMostTogether)
    launch_combine<T, kMostTogether>(window, groups, plan, weights, h, out, parameters, stream);
  for (; h + 4 <= n_horizons; h += 4)
    launch_combine<T, 4>(window, groups, plan, weights, h, out, parameters, stream);
  for (; h + 2 <= n_horizons; h += 2)
    launch_combine<T, 2>(window, groups, plan, weights, h, out, parameters, stream);
  if (h < n_horizons)
    launch_combine<T, 1>(window, groups, plan, weights, h, out, parameters, stream);
}

} // namespace

void combine(const Window &window, const Groups &groups, const Plan &plan, const double *weights,
             int n_horizons, const Output &out, const Tensors &parameters, Stream stream) {
  (window.is_double ? combine_of<double> : combine_of<float>)(window, groups, plan, weights,
                                                              n_horizons, out, parameters, stream);
}

void combine_deficient(const Window &window, const Groups &groups, const std::int64_t *rank,
                       int columns, const double *weights, int n_horizons, const Output &out,
                       const Tensors &parameters, Stream stream) {
  const std::int64_t batches = (groups.count + kBatch - 1) / kBatch;
  launch("combine of deficient groups",
         window.is_double ? combine_where_deficient<double> : combine_where_deficient<float>,
         blocks_for((batches + kWarps - 1) / kWarps), 32 * kWarps, 0, stream, window, groups, rank,
         columns, weights, n_horizons, out, parameters);
}

} // namespace koopcore::cuda
