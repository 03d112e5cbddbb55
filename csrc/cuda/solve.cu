// Companion fits and rollouts, one group per thread: the algorithms of csrc/algorithms as they are.
//
// Mirrors cpu/solve.cpp. A warp's 32 groups stand side by side (batch_lanes.h): their factors in
// shared memory while they fit, else in the work space that the caller passes.
#include "algorithms/companion.h"
#include "cuda/batch_lanes.h"
#include "cuda/fetch.h"
#include "cuda/stages.h"
#include "cuda/warp.h"

namespace koopcore::cuda {
namespace {

// Work space of a batch in numbers: the factorization, and the rollout of the held-out fit.
int factor_rows(int n) { return n + companion_work(n) - rollout_work(n); }
std::int64_t rollout_rows(int columns, bool affine) {
  return 2 * columns + 1 + int(affine) + rollout_work(columns);
}

std::int64_t solve_rows(const Device &device, int n) {
  return (solve_bytes(n) <= device.shared_memory ? 0 : factor_rows(n)) + rollout_work(n);
}

// The Gram matrices of the batch, as they stand side by side, into shared memory: a lane fetches
// its own columns, without a register in between, and waits for all of them once.
__device__ inline void fetch_batch(BatchReal *to, const BatchReal *from, int numbers) {
  for (int e = 0; e < numbers; ++e)
    fetch_number(&to[e].value, &from[e].value);
  await_fetches();
}

// InShared: the factors are in shared memory, and so is G at first. One kernel for both would know
// of no address where it is, and read and write through generic ones.
template <bool InShared>
__global__ void __launch_bounds__(kBatch, 1)
    solve_batches(const double *__restrict__ gram, std::int64_t groups, int n, bool affine,
                  int holdout, double noise, int factor_size, CompanionArrays out,
                  double *__restrict__ space) {
  KOOPCORE_SHARED(shared);
  const int lane = threadIdx.x, columns = n - 1 - int(affine);
  double *part = space + std::int64_t(blockIdx.x) * kBatch * (factor_size + rollout_work(n));
  BatchReal *work;
  if constexpr (InShared)
    work = lane_of(reinterpret_cast<double *>(shared), lane);
  else
    work = lane_of(part, lane);
  BatchReal *rolling = lane_of(part + std::int64_t(factor_size) * kBatch, lane);
  const std::int64_t batches = (groups + kBatch - 1) / kBatch;
  for (std::int64_t batch = blockIdx.x; batch < batches; batch += gridDim.x) {
    const std::int64_t group = batch * kBatch + lane;
    if (group >= groups)
      return;
    const BatchReal *of = lane_of(gram + batch * kBatch * packed_size(n), lane);
    BatchReal *coefficients = work;
    const auto fetch = [&] {
      if constexpr (InShared)
        fetch_batch(work + n, of, packed_size(n));
    };
    fetch();
    const CompanionFit<BatchLanes> fit =
        fit_companion<BatchLanes>(InShared ? work + n : of, n, affine, holdout, coefficients,
                                  work + n, rolling, noise, fetch);
    for (int i = 0; i < columns; ++i)
      out.coefficients[group * columns + i] = coefficients[i];
    out.rank[group] = std::int64_t(fit.rank.value);
    out.residual[group] = fit.residual;
    out.condition[group] = fit.condition;
    out.hindcast[group] = fit.hindcast;
  }
}

// Weights and growth of a horizon from power = S^{T-1} a and total = Σ_{t<T} S^t a, in registers:
// the same as `weigh` of algorithms/recurrence.h, for arrays that end with the newest entry.
template <int N>
__device__ double weigh_registers(const double (&a)[N], const double (&power)[N],
                                  const double (&total)[N], int columns, bool affine,
                                  double *weights) {
  double square = 0.0, reference = 0.0, sum = 0.0, largest = 0.0;
  double w[N];
  KOOPCORE_UNROLL
  for (int i = 0; i < N; ++i) {
    square += power[i] * power[i];
    reference += a[i] * a[i];
  }
  KOOPCORE_UNROLL
  for (int i = N - 1; i >= 0; --i) {
    sum += power[i];
    w[i] = affine ? 1.0 + total[i] : sum;
    largest = ::fabs(w[i]) <= largest ? largest : ::fabs(w[i]); // a NaN stays
  }
  const bool diverged = !(largest <= kWeightLimit);
  const int first = affine ? 2 : 1, skipped = N - columns;
  KOOPCORE_UNROLL
  for (int i = 0; i < N; ++i)
    if (i >= skipped)
      weights[first + i - skipped] = diverged ? 1.0 : w[i];
  if (affine)
    weights[0] = weights[1] = 1.0;
  else
    weights[0] = diverged ? 1.0 : sum;
  return diverged ? HUGE_VAL : ::sqrt(square / reference);
}

// c <- x·c mod p, step by step, with coefficients in registers. Shorter recurrences stand at the
// end of the arrays: the zeros before them stay zeros.
template <int N>
__global__ void __launch_bounds__(64)
    rollout_registers(const double *coefficients, std::int64_t groups, int columns, bool affine,
                      Horizons at, double *weights, double *growth) {
  const std::int64_t step = std::int64_t(gridDim.x) * blockDim.x;
  const int n = columns + 1 + int(affine), skipped = N - columns;
  for (std::int64_t group = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; group < groups;
       group += step) {
    double a[N], power[N], total[N];
    KOOPCORE_UNROLL
    for (int i = 0; i < N; ++i) {
      a[i] = i < skipped ? 0.0 : coefficients[group * columns + i - skipped];
      power[i] = total[i] = a[i];
    }
    std::int64_t reached = 1;
    for (int h = 0; h < at.count; ++h) {
      for (; reached < at.ascending[h]; ++reached) {
        const double last = power[N - 1];
        KOOPCORE_UNROLL
        for (int i = N - 1; i > 0; --i)
          power[i] = a[i] * last + power[i - 1];
        power[0] = a[0] * last;
        if (affine)
          KOOPCORE_UNROLL
        for (int i = 0; i < N; ++i)
          total[i] += power[i];
      }
      const std::int64_t row = at.slot[h] * groups + group;
      growth[row] = weigh_registers<N>(a, power, total, columns, affine, weights + row * n);
    }
  }
}

// Any length and any horizon, from the work space: the rollout of algorithms/recurrence.h.
__global__ void __launch_bounds__(kBatch, 1)
    rollout_batches(const double *coefficients, std::int64_t groups, int columns, bool affine,
                    Horizons at, double *weights, double *growth, double *space) {
  const int lane = threadIdx.x, n = columns + 1 + int(affine);
  BatchReal *a = thread_space(space, columns + n + rollout_work(columns));
  BatchReal *w = a + columns, *work = w + n;
  const std::int64_t batches = (groups + kBatch - 1) / kBatch;
  for (std::int64_t batch = blockIdx.x; batch < batches; batch += gridDim.x) {
    const std::int64_t group = batch * kBatch + lane;
    if (group >= groups)
      return;
    for (int i = 0; i < columns; ++i)
      a[i] = coefficients[group * columns + i];
    koopcore::rollout<BatchLanes>(a, columns, affine, at.ascending, at.count, w, work,
                                  [&](int h, const BatchReal *of, const BatchReal &grown) {
                                    const std::int64_t row = at.slot[h] * groups + group;
                                    for (int k = 0; k < n; ++k)
                                      weights[row * n + k] = of[k];
                                    growth[row] = grown;
                                  });
  }
}

constexpr int kMostRegisters = 24; // longest recurrence that is rolled in registers

template <int N>
void launch_registers(const double *coefficients, std::int64_t groups, int columns, bool affine,
                      const Horizons &at, double *weights, double *growth, Stream stream) {
  launch("rollout", rollout_registers<N>, blocks_for((groups + 63) / 64), 64, 0, stream,
         coefficients, groups, columns, affine, at, weights, growth);
}

bool in_registers(int columns, std::int64_t last) {
  return columns <= kMostRegisters && last <= kDirectSteps;
}

} // namespace

std::size_t solve_bytes(int n) { return std::size_t(factor_rows(n)) * kBatch * sizeof(double); }

std::int64_t solve_space(const Device &device, std::int64_t groups, int n) {
  const std::int64_t rows = solve_rows(device, n);
  return space_blocks(device, groups, rows) * kBatch * rows;
}

void solve(const Device &device, const double *gram, std::int64_t groups, int n, bool affine,
           int holdout, double noise, const CompanionArrays &out, double *space, Stream stream) {
  const unsigned blocks = unsigned(space_blocks(device, groups, solve_rows(device, n)));
  if (solve_bytes(n) <= device.shared_memory)
    launch("companion fits", solve_batches<true>, blocks, kBatch, solve_bytes(n), stream, gram,
           groups, n, affine, holdout, noise, 0, out, space);
  else
    launch("companion fits", solve_batches<false>, blocks, kBatch, 0, stream, gram, groups, n,
           affine, holdout, noise, factor_rows(n), out, space);
}

std::int64_t rollout_space(const Device &device, std::int64_t groups, int columns, bool affine,
                           std::int64_t last) {
  if (in_registers(columns, last))
    return 0;
  const std::int64_t rows = rollout_rows(columns, affine);
  return space_blocks(device, groups, rows) * kBatch * rows;
}

void rollout(const Device &device, const double *coefficients, std::int64_t groups, int columns,
             bool affine, const Horizons &at, double *weights, double *growth, double *space,
             Stream stream) {
  if (!in_registers(columns, at.ascending[at.count - 1]))
    launch("rollout", rollout_batches,
           unsigned(space_blocks(device, groups, rollout_rows(columns, affine))), kBatch, 0, stream,
           coefficients, groups, columns, affine, at, weights, growth, space);
  else if (columns <= 8)
    launch_registers<8>(coefficients, groups, columns, affine, at, weights, growth, stream);
  else if (columns <= 16)
    launch_registers<16>(coefficients, groups, columns, affine, at, weights, growth, stream);
  else
    launch_registers<kMostRegisters>(coefficients, groups, columns, affine, at, weights, growth,
                                     stream);
}

} // namespace koopcore::cuda
