// Fit, rollout and prediction in one pass: a block reads the snapshots of one group once.
//
// The counterpart of gram_solve in cpu/stages.cpp. Snapshots stay in shared memory (tile.h) while
// the warps sum the Gram matrix and the first one solves and rolls (warp_companion.h), and the
// prediction is made from there. Nothing but results goes back to memory. While one block solves,
// others on the multiprocessor read and sum.
#include "cuda/predictions.h"
#include "cuda/stages.h"
#include "cuda/sums.h"
#include "cuda/tile.h"
#include "cuda/warp_companion.h"

namespace koopcore::cuda {
namespace {

constexpr int kMostWarps = 4;

// Blocks of kMostWarps that shall fit a multiprocessor: a bound for the registers, without spills.
constexpr int resident_blocks(int NT) { return NT == 1 ? 6 : NT == 2 ? 5 : 3; }

// Numbers behind the tile: where the snapshots begin; and first the sums that the warps pass on,
// then the matrix that the first warp works with and the weights of every horizon.
template <int NT> constexpr int work_numbers(int n, int warps, int horizons) {
  const int across = warps > 1 ? 32 * TensorSums<float, NT>::kValues : 0;
  const int fit = WarpCompanion<8 * NT>::kNumbers + horizons * n;
  return n + (across > fit ? across : fit);
}
template <class T, int NT> std::size_t shared_bytes(int n, int columns, int warps, int horizons) {
  return sizeof(T) * n * Tile<T>::pitch(columns) +
         sizeof(double) * work_numbers<NT>(n, warps, horizons);
}

// The fit of the group whose Gram matrix is in `of`, by one warp: fields, and the Gram matrix of a
// deficient group. Returns the lane's coefficient, zero where the group is deficient.
template <int N>
__device__ double fit_group(WarpCompanion<N> &of, std::int64_t group, int n, const OnePass &how,
                            const CompanionArrays &fields, double *gram, int lane) {
  const int columns = n - 1 - int(how.affine), rank = of.factor(how.noise);
  const bool whole = rank == columns;
  const double a = whole ? of.recurrence(columns) : 0.0;
  if (!whole && gram != nullptr)
    of.save(gram + group / kBatch * kBatch * packed_size(n) + group % kBatch, kBatch);
  if (lane == 0)
    fields.rank[group] = rank;
  if (fields.coefficients == nullptr)
    return a;
  const double residual = whole ? of.residual() : 0.0,
               condition = whole ? of.condition() : HUGE_VAL;
  const bool held_out = whole && how.holdout > 0 && how.holdout < columns;
  const double hindcast = held_out ? of.hindcast(how.holdout) : NAN;
  if (lane < columns)
    fields.coefficients[group * columns + lane] = a;
  if (lane == 0) {
    fields.residual[group] = residual;
    fields.condition[group] = condition;
    fields.hindcast[group] = hindcast;
  }
  return a;
}

// x_n + B (w - 1) of the group in the tile, into row `row`; moves: w - 1.
template <class T>
__device__ void predict(const Tile<T> &tile, const Groups &groups, std::int64_t group, int n,
                        const double *moves, int row, const Output &out,
                        const Tensors &parameters) {
  Tile<T>::each_segment(groups, group, [&](const Run &of, int column, int quads) {
    for (int q = threadIdx.x; q < quads; q += blockDim.x) {
      double value[4] = {}, previous[4] = {};
#pragma unroll 2 // more in flight would take registers, and with them blocks
      for (int k = 0; k < n; ++k) {
        const Quad<T> x = tile.quad(k, column + 4 * q);
        const double move = moves[k];
        KOOPCORE_UNROLL
        for (int s = 0; s < 4; ++s) {
          const double current = double(x.value[s]);
          value[s] += move * (current - previous[s]);
          previous[s] = current;
        }
      }
      KOOPCORE_UNROLL
      for (int s = 0; s < 4; ++s)
        value[s] += previous[s];
      store_four(out, parameters, row, of.four(q), value);
    }
  });
}

template <class T, int NT>
__global__ void __launch_bounds__(32 * kMostWarps, resident_blocks(NT))
    fit_and_predict(Window window, Groups groups, Share share, OnePass how, Horizons at,
                    CompanionArrays fields, double *gram, Output out, Tensors parameters) {
#if !KOOPCORE_TWO_FLOAT
  KOOPCORE_SHARED(shared);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int n = window.n, columns = n - 1 - int(how.affine);
  const char **rows =
      reinterpret_cast<const char **>(shared + sizeof(T) * n * Tile<T>::pitch(share.columns));
  double *work = reinterpret_cast<double *>(rows + n);
  double *moves = work + WarpCompanion<8 * NT>::kNumbers; // (at.count, n)
  WarpCompanion<8 * NT> companion(work, n, how.affine, lane);
  find_rows(window, rows);
  __syncthreads();
  for (std::int64_t i = blockIdx.x; i < share.count; i += gridDim.x) {
    const std::int64_t group = share.group == nullptr ? i : share.group[i];
    Tile<T> tile(reinterpret_cast<T *>(shared), n, share.columns);
    tile.load(window, rows, groups, group);
    __syncthreads();

    TensorSums<T, NT> sums(nullptr);
    for (int chunk = warp; chunk < tile.chunks(); chunk += warps) {
      Quad<T> x[NT];
      tile.quads(chunk, lane, x);
      sums.add(x, lane);
    }
    if (warps > 1)
      add_warps(sums, warp, warps, lane, work);
    if (warp == warps - 1)
      put_entries(sums, n, lane, [&](const Entry &entry, double x) {
        work[entry.row * WarpCompanion<8 * NT>::kPitch + entry.column] = x;
      });
    __syncthreads();

    if (warp == 0) {
      WarpRollout rollout(fit_group(companion, group, n, how, fields, gram, lane), columns, lane);
      for (int h = 0; h < at.count; ++h) {
        rollout.advance(at.ascending[h]);
        rollout.weigh(how.affine, moves + h * n);
      }
    }
    __syncthreads();
    for (int h = 0; h < at.count; ++h)
      predict(tile, groups, group, n, moves + h * n, at.slot[h], out, parameters);
    __syncthreads();
  }
#else
  __trap(); // better than outputs that nobody has written
#endif
}

// Calls use(kernel, bytes of shared memory) for the kernel of such snapshots.
template <class Use>
void for_kernel(bool is_double, int n, int columns, int warps, int horizons, Use &&use) {
  for_tiles(n, [&](auto tiles) {
    if (is_double)
      use(fit_and_predict<double, tiles()>,
          shared_bytes<double, tiles()>(n, columns, warps, horizons));
    else
      use(fit_and_predict<float, tiles()>,
          shared_bytes<float, tiles()>(n, columns, warps, horizons));
  });
}

} // namespace

std::size_t one_pass_bytes(int n, int columns, int warps, int horizons, bool is_double) {
  std::size_t bytes = 0;
  for_kernel(is_double, n, columns, warps, horizons,
             [&](auto, std::size_t needed) { bytes = needed; });
  return bytes;
}

void one_pass(const Device &device, const Window &window, const Groups &groups, const Share &share,
              const OnePass &how, const Horizons &at, const CompanionArrays &fields, double *gram,
              const Output &out, const Tensors &parameters, Stream stream) {
  if (!fast_double(device.code))
    throw std::invalid_argument("one pass needs fast fp64, and the code of device " +
                                std::to_string(device.number) + " is of compute capability " +
                                std::to_string(device.code / 10) + "." +
                                std::to_string(device.code % 10) + "; go by stages");
  const char *name = "fit and prediction in one pass";
  for_kernel(window.is_double, window.n, share.columns, share.warps, at.count,
             [&](auto kernel, std::size_t bytes) {
               // As many blocks as fit shall share a multiprocessor.
               check(cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel),
                                          cudaFuncAttributePreferredSharedMemoryCarveout, 100),
                     name);
               launch(name, kernel, blocks_for(share.count), 32 * share.warps, bytes, stream,
                      window, groups, share, how, at, fields, gram, out, parameters);
             });
}

} // namespace koopcore::cuda
