// Predictions of W small groups: dense rollout, read-out, own coordinates, and into the output.
#include "cpu/accumulate.h"
#include "cpu/kernels.h"
#include "cpu/transposed.h"
#include "koopcore/dense_rollout.h"

namespace koopcore::cpu::KOOPCORE_ISA {

namespace {

// (m × r) matrix times (r) vector.
void read_out(const Vec *a, int m, int r, const Vec *x, Vec *out) {
  for (int i = 0; i < m; ++i) {
    Vec s{};
    for (int j = 0; j < r; ++j)
      s += a[i * r + j] * x[j];
    out[i] = s;
  }
}

// The columns of W groups of one row of the output, kept finite.
template <class T>
void store(const Vec *values, const std::ptrdiff_t *offset, int m, int count, char *row) {
  constexpr double limit =
      sizeof(T) == sizeof(float) ? 3.4028234663852886e38 : 1.7976931348623157e308;
  for (int i = 0; i < m; ++i) {
    const Vec top = SimdLanes::broadcast(limit);
    Vec x = values[i] > top ? top : values[i];
    x = x < -top ? -top : x;
    for (int lane = 0; lane < count; ++lane) {
      const T one = T(x[lane]);
      __builtin_memcpy(row + offset[i * kLanes + lane], &one, sizeof one);
    }
  }
}

} // namespace

std::size_t feature_endpoint_scratch(int m, int rank, const std::int64_t *horizons,
                                     int n_horizons) {
  const int levels = dense_rollout_levels(rank, horizons, n_horizons);
  return std::size_t(rank * rank + rank + m * rank + 5 * m + dense_rollout_work(rank, levels)) *
         kLanes;
}

void feature_endpoint_batch(const FeatureEndpointJob &job, std::int64_t first, int count,
                            double *scratch) {
  const int m = job.m, r = job.rank;
  Vec *k = reinterpret_cast<Vec *>(scratch), *z = k + r * r, *readout = z + r;
  Vec *last = readout + m * r, *v = last + m, *y = v + m;
  auto *from = reinterpret_cast<std::ptrdiff_t *>(y + m), *to = from + m * kLanes;
  Vec *work = y + 3 * m;
  const int levels = dense_rollout_levels(r, job.horizons, job.n_horizons);
  to_lanes(job.operators + first * r * r, r * r, count, r * r, k);
  to_lanes(job.start + first * r, r, count, r, z);
  to_lanes(job.readout + first * m * r, m * r, count, m * r, readout);
  find_offsets(job.groups, job.window.step, first, count, from);
  find_offsets(job.groups, job.out_step, first, count, to);
  const char *newest = job.window.rows[job.window.n - 1];
  for (int i = 0; i < m; ++i)
    last[i] = job.window.is_double ? gather_at<double>(newest, from + i * kLanes)
                                   : gather_at<float>(newest, from + i * kLanes);
  Reflection<SimdLanes> reflection{v, Vec{}, Vec{}};
  reflection.set(last, m);
  const Vec limit = SimdLanes::broadcast(kWeightLimit);
  rollout_dense<SimdLanes>(k, z, r, job.affine, job.horizons, job.n_horizons, levels, work,
                           [&](int h, const Vec *state, const Vec &) {
                             IntVec calm = SimdLanes::everywhere();
                             for (int i = 0; i < r; ++i)
                               calm &= SimdLanes::abs(state[i]) <= limit;
                             read_out(readout, m, r, state, y);
                             Vec along{};
                             if (!job.affine)
                               for (int i = 0; i < m; ++i)
                                 along += y[i] * v[i];
                             along *= reflection.twice;
                             for (int i = 0; i < m; ++i) {
                               const Vec moved = job.affine ? y[i] + last[i] : y[i] - along * v[i];
                               y[i] = calm ? moved : last[i];
                             }
                             char *row = job.out + job.slot[h] * job.out_row;
                             (job.out_is_double ? store<double> : store<float>)(y, to, m, count,
                                                                                row);
                           });
}

} // namespace koopcore::cpu::KOOPCORE_ISA
