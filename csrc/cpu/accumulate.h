// Accumulation of feature-side moments of W groups, for the stages that end in different things.
//
// Included only by files that are compiled per instruction set.
#pragma once

#include "cpu/problem.h"
#include "cpu/simd.h"
#include "koopcore/moments.h"

namespace koopcore::cpu::KOOPCORE_ISA {

namespace {

constexpr int kBlockRows = 16; // snapshots that are taken together

// offset[i·W + lane] <- where parameter i of the group in this lane stands in a snapshot, in bytes.
inline void find_offsets(const Groups &groups, std::ptrdiff_t step, std::int64_t first, int count,
                         std::ptrdiff_t *offset) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const std::int64_t group = first + (lane < count ? lane : 0);
    std::int64_t i = 0;
    for (std::int64_t s = groups.ptr[group]; s < groups.ptr[group + 1]; ++s)
      for (std::int64_t k = 0; k < groups.length[s]; ++k)
        offset[i++ * kLanes + lane] = step * (groups.start[s] + k * groups.stride[s]);
  }
}

template <class T> KOOPCORE_INLINE Vec gather_at(const char *row, const std::ptrdiff_t *offset) {
  Narrow<T> x;
  for (int lane = 0; lane < kLanes; ++lane) {
    T one;
    __builtin_memcpy(&one, row + offset[lane], sizeof one);
    x[lane] = one;
  }
  return widen(x);
}

// y_t for t = t0 … t0 + rows - 1: differences, or reflected snapshots.
template <class T>
void block_of_rows(const Window &window, bool affine, int m,
                   const Reflection<SimdLanes> &reflection, const Vec *last,
                   const std::ptrdiff_t *offset, int t0, int rows, Vec *y) {
  const char *const *row = window.rows;
  for (int t = 0; t < rows; ++t) {
    Vec *out = y + t * m;
    if (affine) {
      for (int i = 0; i < m; ++i)
        out[i] = gather_at<T>(row[t0 + t + 1], offset + i * kLanes) -
                 gather_at<T>(row[t0 + t], offset + i * kLanes);
    } else {
      for (int i = 0; i < m; ++i)
        out[i] = gather_at<T>(row[t0 + t], offset + i * kLanes) - last[i];
      reflection.apply(out, m);
    }
  }
}

// What the accumulation keeps of its groups: entries of the vectors are one group per lane.
struct Moments {
  Vec *c, *e;             // (m, m) lower triangle of Σ f fᵀ, and Σ (f' - f) fᵀ
  Vec *last;              // (m) x_n
  Vec *newest;            // (m) y_end, the newest column of F'
  Vec *change;            // (m) newest - the newest column of F
  std::ptrdiff_t *offset; // (m, W) where the parameters stand
  Reflection<SimdLanes> reflection;
};

inline std::size_t accumulation_scratch(int m) {
  return std::size_t(2 * m * m + 3 * m + (2 * kBlockRows + 1) * m) * kLanes;
}

// Sums over the rows before stops[0], stops[1] … in turn, with at(stop index, moments) after each.
template <class T, class At>
void accumulate(const Window &window, const Groups &groups, bool affine, int m,
                const std::int64_t *stops, int n_stops, std::int64_t first, int count,
                double *scratch, At &&at) {
  Vec *c = reinterpret_cast<Vec *>(scratch), *e = c + m * m, *last = e + m * m, *v = last + m;
  Vec *y = v + m, *change = y + (kBlockRows + 1) * m;
  auto *offset = reinterpret_cast<std::ptrdiff_t *>(change + kBlockRows * m);
  find_offsets(groups, window.step, first, count, offset);
  Reflection<SimdLanes> reflection{v, Vec{}, Vec{}};
  for (int i = 0; i < m; ++i)
    last[i] = gather_at<T>(window.rows[window.n - 1], offset + i * kLanes);
  if (!affine)
    reflection.set(last, m);
  for (int i = 0; i < 2 * m * m; ++i)
    c[i] = Vec{};
  int t = 0; // rows summed; y[0] holds row t when `ready`
  bool ready = false;
  const Vec *newest_change = change;
  for (int stop = 0; stop < n_stops; ++stop) {
    const int end = int(stops[stop]) - 1 - int(affine);
    while (t < end) {
      const int rows = end - t < kBlockRows ? end - t : kBlockRows;
      if (!ready)
        block_of_rows<T>(window, affine, m, reflection, last, offset, t, 1, y);
      block_of_rows<T>(window, affine, m, reflection, last, offset, t + 1, rows, y + m);
      for (int i = 0; i < rows * m; ++i)
        change[i] = y[i + m] - y[i];
      add_outer<SimdLanes>(y, y, rows, m, true, c);
      add_outer<SimdLanes>(change, y, rows, m, false, e);
      for (int i = 0; i < m; ++i)
        y[i] = y[rows * m + i];
      newest_change = change + (rows - 1) * m;
      ready = true;
      t += rows;
    }
    at(stop, Moments{c, e, last, y, const_cast<Vec *>(newest_change), offset, reflection});
  }
}

} // namespace

} // namespace koopcore::cpu::KOOPCORE_ISA
