// The lane policy of a warp that has one group: its lanes share the loops of csrc/algorithms.
//
// The counterpart of batch_lanes.h, for groups that are few. All lanes go the same way and have the
// same numbers in registers; arrays are theirs together, in shared memory or in work space. What
// writes to one stands in `each`, at whose ends they wait for each other, or is one of the
// functions below, which the algorithms have for a lane alone.
#pragma once

#include "algorithms/dense_rollout.h"
#include "algorithms/projection.h"
#include "cuda/warp.h"

// The functions of algorithms exist for the host as well, where these are never called.
#if defined(__CUDA_ARCH__) || defined(KOOPCORE_EMULATED)
#define KOOPCORE_OF_WARP(x) x
#else
#define KOOPCORE_OF_WARP(x)
#endif

namespace koopcore {

struct WarpTag {};
using WarpLanes = ScalarLanes<WarpTag>;

KOOPCORE_HD inline int warp_lane() {
  int lane = 0;
  KOOPCORE_OF_WARP(lane = threadIdx.x & 31;)
  return lane;
}
KOOPCORE_HD inline void wait_for_lanes() { KOOPCORE_OF_WARP(__syncwarp();) }
// The sums of each number over `width` lanes beside each other, a power of two.
template <int Count> KOOPCORE_HD inline void sum_lanes_of(double (&x)[Count], int width) {
  KOOPCORE_OF_WARP(for (int apart = width / 2; apart > 0; apart /= 2) {
    double other[Count];
    KOOPCORE_UNROLL
    for (int i = 0; i < Count; ++i)
      other[i] = __shfl_xor_sync(cuda::kAllLanes, x[i], apart);
    KOOPCORE_UNROLL
    for (int i = 0; i < Count; ++i)
      x[i] += other[i];
  })
}
KOOPCORE_HD inline bool any_lane(bool x) {
  KOOPCORE_OF_WARP(x = __any_sync(cuda::kAllLanes, x);)
  return x;
}

template <> struct Loops<WarpLanes> {
  template <class Turn> KOOPCORE_HD static KOOPCORE_INLINE void each(int count, Turn &&turn) {
    wait_for_lanes(); // others may still read what is written here
    for (int i = warp_lane(); i < count; i += 32)
      turn(i);
    wait_for_lanes();
  }
  template <class Term> KOOPCORE_HD static KOOPCORE_INLINE double sum(int count, Term &&term) {
    double all[1] = {0.0};
    for (int i = warp_lane(); i < count; i += 32)
      all[0] += term(i);
    sum_lanes_of(all, 32);
    return all[0];
  }
};

// Four entries a lane at once: sums that do not wait for each other.
template <Left Form>
KOOPCORE_HD inline void multiply_by_warp(const double *a, const double *b, int rows, int inner,
                                         int columns, double *out) {
  const int a_next = Form == Left::plain ? 1 : rows, a_row = Form == Left::plain ? inner : 1;
  const int count = rows * columns;
  wait_for_lanes();
  for (int begin = 0; begin < count; begin += 4 * 32) {
    double sum[4];
    const double *left[4], *right[4];
    KOOPCORE_UNROLL
    for (int c = 0; c < 4; ++c) {
      const int e = begin + 32 * c + warp_lane(), at = e < count ? e : 0;
      sum[c] = 0.0;
      left[c] = a + at / columns * a_row;
      right[c] = b + at % columns;
    }
    for (int k = 0; k < inner; ++k)
      KOOPCORE_UNROLL
    for (int c = 0; c < 4; ++c)
      sum[c] += left[c][k * a_next] * right[c][k * columns];
    KOOPCORE_UNROLL
    for (int c = 0; c < 4; ++c)
      if (begin + 32 * c + warp_lane() < count)
        out[begin + 32 * c + warp_lane()] = sum[c];
  }
  wait_for_lanes();
}
template <>
KOOPCORE_HD KOOPCORE_CALLED inline void
multiply<WarpLanes, Left::plain>(const double *a, const double *b, int rows, int inner, int columns,
                                 double *out) {
  multiply_by_warp<Left::plain>(a, b, rows, inner, columns, out);
}
template <>
KOOPCORE_HD KOOPCORE_CALLED inline void
multiply<WarpLanes, Left::transposed>(const double *a, const double *b, int rows, int inner,
                                      int columns, double *out) {
  multiply_by_warp<Left::transposed>(a, b, rows, inner, columns, out);
}

template <>
KOOPCORE_HD inline void apply<WarpLanes>(const double *a, int rows, int columns, const double *x,
                                         double *out) {
  each<WarpLanes>(rows,
                  [&](int i) { apply_rows<WarpLanes, 1>(a + i * columns, columns, x, out + i); });
}

template <>
KOOPCORE_HD inline void pick_symmetric<WarpLanes>(const double *a, int size, const double &pick,
                                                  double *out) {
  const int row = int(pick);
  each<WarpLanes>(size, [&](int i) { out[i] = i < row ? a[row * size + i] : a[i * size + row]; });
}

template <>
KOOPCORE_HD inline void products_with_columns<WarpLanes>(const double *a, const double *x,
                                                         int count, int size, double *out) {
  each<WarpLanes>(count, [&](int j) { column_products<WarpLanes, 1>(a + j, x, size, out + j); });
}

template <>
KOOPCORE_HD inline void subtract_from_column<WarpLanes>(const double *a, const double *b, int count,
                                                        int size, const double &factor, double *x) {
  each<WarpLanes>(size, [&](int i) {
    subtract_products<WarpLanes, 1>(a + i * size, b, count, size, factor, x + i * size);
  });
}

template <>
KOOPCORE_HD inline void pick_columns<WarpLanes>(const double *a, const double *w, int size,
                                                const double &pick, const double &by, double *v,
                                                double *u) {
  const int column = int(pick);
  each<WarpLanes>(size, [&](int i) {
    v[i * size] = column < 0 ? 0.0 : a[i * size + column] * by;
    u[i * size] = column < 0 ? 0.0 : w[i * size + column];
  });
}

// A round turns pairs of columns that have none in common, some lanes to a pair; N - 1 rounds, or
// N, meet all (the tournament of Brent & Luk, 1985).
template <>
KOOPCORE_HD KOOPCORE_CALLED inline void orthogonalize<WarpLanes>(double *a, double *w, int size) {
  const int pairs = (size + 1) / 2, rounds = 2 * pairs - 1;
  int width = 32; // lanes of a pair
  while (width > 1 && width * pairs > 32)
    width /= 2;
  const int at = warp_lane() & (width - 1);
  wait_for_lanes();
  for (int sweep = 0; sweep < kJacobiSweeps; ++sweep) {
    bool rotated = false;
    for (int round = 0; round < rounds; ++round) {
      for (int first = 0; first < pairs; first += 32 / width) {
        const int pair = first + warp_lane() / width;
        int p = round - pair, q = pair == 0 ? rounds : round + pair;
        p = p < 0 ? p + rounds : p;
        q = pair > 0 && q >= rounds ? q - rounds : q;
        const bool both = pair < pairs && p < size && q < size;
        const int low = p < q ? p : q, high = p < q ? q : p;
        double sums[3] = {0.0, 0.0, 0.0}, x[4], y[4];
        // Four rows of a lane at once: loads that do not wait for each other.
        const auto load = [&](const double *columns, int begin) {
          KOOPCORE_UNROLL
          for (int r = 0; r < 4; ++r) {
            const int i = begin + r * width;
            x[r] = i < size ? columns[i * size + low] : 0.0;
            y[r] = i < size ? columns[i * size + high] : 0.0;
          }
        };
        for (int begin = both ? at : size; begin < size; begin += 4 * width) {
          load(a, begin);
          KOOPCORE_UNROLL
          for (int r = 0; r < 4; ++r) {
            sums[0] += x[r] * x[r];
            sums[1] += y[r] * y[r];
            sums[2] += x[r] * y[r];
          }
        }
        sum_lanes_of(sums, width);
        if (!is_turned<WarpLanes>(sums[0], sums[1], sums[2]))
          continue;
        rotated = true;
        double c, s;
        rotation<WarpLanes>(sums[0], sums[1], sums[2], true, c, s);
        const auto turn = [&](double *columns) {
          for (int begin = at; begin < size; begin += 4 * width) {
            load(columns, begin);
            KOOPCORE_UNROLL
            for (int r = 0; r < 4; ++r)
              if (begin + r * width < size) {
                columns[(begin + r * width) * size + low] = c * x[r] - s * y[r];
                columns[(begin + r * width) * size + high] = s * x[r] + c * y[r];
              }
          }
        };
        turn(a);
        if (w != nullptr)
          turn(w);
      }
      wait_for_lanes();
    }
    if (!any_lane(rotated))
      return;
  }
}

} // namespace koopcore
