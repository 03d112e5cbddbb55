// Endpoints of W small groups from their operators: dense rollout, read-out, own coordinates.
//
// Included only by files that are compiled per instruction set.
#pragma once

#include "cpu/accumulate.h"
#include "algorithms/dense_rollout.h"

namespace koopcore::cpu::KOOPCORE_ISA {

namespace {

// Operators of groups of m parameters and rank at most r, one group per lane.
struct SmallOperators {
  int m, r;
  bool affine;
  const Vec *k, *z, *readout;       // (r, r), (r), (m, r)
  const Vec *last;                  // (m) x_n
  Reflection<SimdLanes> reflection; // of the linear model
};

inline std::size_t small_endpoint_work(int m, int r, const Horizons &horizons) {
  const int levels = dense_rollout_levels(r, horizons.ascending, horizons.count);
  return std::size_t(2 * m + dense_rollout_work(r, levels));
}

// The columns of W groups of one row of the output, kept finite.
template <class T>
void store_columns(const Vec *values, const std::ptrdiff_t *offset, int m, int count, char *row) {
  constexpr double limit =
      sizeof(T) == sizeof(float) ? 3.4028234663852886e38 : 1.7976931348623157e308;
  const Vec top = SimdLanes::broadcast(limit);
  for (int i = 0; i < m; ++i) {
    Vec x = values[i] > top ? top : values[i];
    x = x < -top ? -top : x;
    const Narrow<T> narrowed = narrow<T>(x);
    for (int lane = 0; lane < count; ++lane) {
      const T one = narrowed[lane];
      __builtin_memcpy(row + offset[i * kLanes + lane], &one, sizeof one);
    }
  }
}

// x_{n+T} of the first `count` lanes at every horizon. A lane whose state grew past what a
// prediction may keeps its last snapshot. work: small_endpoint_work.
inline void write_endpoints(const SmallOperators &of, const Groups &groups, std::int64_t first,
                            int count, const Horizons &horizons, const Output &out, Vec *work) {
  const int m = of.m, r = of.r;
  Vec *y = work;
  auto *to = reinterpret_cast<std::ptrdiff_t *>(y + m);
  find_offsets(groups, out.step, first, count, to);
  const int levels = dense_rollout_levels(r, horizons.ascending, horizons.count);
  const Vec limit = SimdLanes::broadcast(kWeightLimit);
  const auto emit = [&](int h, const Vec *state, const Vec &) {
    IntVec calm = SimdLanes::everywhere();
    for (int i = 0; i < r; ++i)
      calm &= SimdLanes::abs(state[i]) <= limit;
    apply<SimdLanes>(of.readout, m, r, state, y);
    Vec along{};
    if (!of.affine)
      for (int i = 0; i < m; ++i)
        along += y[i] * of.reflection.v[i];
    along *= of.reflection.twice;
    for (int i = 0; i < m; ++i) {
      const Vec moved = of.affine ? y[i] + of.last[i] : y[i] - along * of.reflection.v[i];
      y[i] = calm ? moved : of.last[i];
    }
    char *row = out.data + horizons.slot[h] * out.row;
    (out.is_double ? store_columns<double> : store_columns<float>)(y, to, m, count, row);
  };
  rollout_dense<SimdLanes>(of.k, of.z, r, of.affine, false, horizons.ascending, horizons.count,
                           levels, work + 2 * m, emit);
}

} // namespace

} // namespace koopcore::cpu::KOOPCORE_ISA
