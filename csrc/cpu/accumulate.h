// Accumulation of feature-side moments of W groups, for the stages that end in different things.
//
// Included only by files that are compiled per instruction set.
#pragma once

#include "algorithms/moments.h"
#include "cpu/problem.h"
#include "cpu/simd.h"

namespace koopcore::cpu::KOOPCORE_ISA {

namespace {

constexpr int kBlockRows = 8; // snapshots that are taken together
// Rows summed before they are added to the others: rounding grows with the number of additions in a
// row, and a rank is decided by a few units in the last place.
constexpr int kRowsInARow = 128;

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

// The parameters of W groups of one snapshot, one group per lane.
template <class T> class GroupRows {
public:
  GroupRows(const std::ptrdiff_t *offset, int m) : offset_(offset), m_(m) {
    for (int i = 0; i + kLanes <= m && i < kMostBlocks; ++i)
      blocks_[i] = is_block(i);
  }

  // out (m) <- the row.
  void take(const char *row, Vec *out) const {
    for (int i = 0; i < m_;) {
      const std::ptrdiff_t *at = offset_ + i * kLanes;
      // Fetched ahead: the same of the next W groups, if they go on as these do.
      const std::ptrdiff_t ahead = kLanes * (at[1] - at[0]);
      if (i + kLanes > m_ || i >= kMostBlocks || !blocks_[i]) {
        __builtin_prefetch(row + at[0] + ahead);
        out[i] = gather_at<T>(row, at);
        ++i;
        continue;
      }
      for (int lane = 0; lane < kLanes; ++lane) {
        __builtin_prefetch(row + at[lane] + ahead);
        out[i + lane] = load<T>(row + at[lane]);
      }
      transpose(out + i);
      i += kLanes;
    }
  }

private:
  static constexpr int kMostBlocks = 64;

  // Whether parameters i … i + W - 1 are neighbours in every group.
  bool is_block(int i) const {
    bool good = true;
    for (int k = 1; k < kLanes; ++k)
      for (int lane = 0; lane < kLanes; ++lane)
        good &= offset_[(i + k) * kLanes + lane] ==
                offset_[i * kLanes + lane] + k * std::ptrdiff_t(sizeof(T));
    return good;
  }

  const std::ptrdiff_t *offset_;
  int m_;
  bool blocks_[kMostBlocks] = {};
};

// The rows y_t that are summed, in turn: differences, or reflected snapshots.
template <class T> class SummedRows {
public:
  // `raw` (m) is work space of the affine model.
  SummedRows(const Window &window, bool affine, const GroupRows<T> &groups, int m,
             const Reflection<SimdLanes> &reflection, const Vec *last, Vec *raw)
      : window_(window), affine_(affine), groups_(groups), m_(m), reflection_(reflection),
        last_(last), raw_(raw) {
    if (affine)
      groups_.take(window.rows[next_++], raw_);
  }

  // The next row.
  void take(Vec *out) {
    groups_.take(window_.rows[next_++], out);
    if (affine_) {
      for (int i = 0; i < m_; ++i) {
        const Vec current = out[i];
        out[i] = current - raw_[i];
        raw_[i] = current;
      }
      return;
    }
    for (int i = 0; i < m_; ++i)
      out[i] -= last_[i];
    reflection_.apply(out, m_);
  }

private:
  const Window &window_;
  bool affine_;
  const GroupRows<T> &groups_;
  int m_;
  const Reflection<SimdLanes> &reflection_;
  const Vec *last_;
  Vec *raw_;
  int next_ = 0;
};

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
  return std::size_t(4 * m * m + 4 * m + (2 * kBlockRows + 1) * m) * kLanes;
}

// Sums over the rows before stops[0], stops[1] … in turn, with at(stop index, moments) after each.
template <class T, class At>
void accumulate(const Window &window, const Groups &groups, bool affine, int m,
                const std::int64_t *stops, int n_stops, std::int64_t first, int count,
                double *scratch, At &&at) {
  Vec *c = reinterpret_cast<Vec *>(scratch), *e = c + m * m, *last = e + m * m, *v = last + m;
  Vec *raw = v + m, *y = raw + m, *change = y + (kBlockRows + 1) * m;
  auto *offset = reinterpret_cast<std::ptrdiff_t *>(change + kBlockRows * m);
  Vec *sums = window.n > kRowsInARow ? reinterpret_cast<Vec *>(offset + m * kLanes) : c;
  find_offsets(groups, window.step, first, count, offset);
  const GroupRows<T> of_groups(offset, m);
  Reflection<SimdLanes> reflection{v, Vec{}, Vec{}};
  of_groups.take(window.rows[window.n - 1], last);
  if (!affine)
    reflection.set(last, m);
  for (int i = 0; i < 2 * m * m; ++i)
    c[i] = sums[i] = Vec{};
  const auto add_sums = [&] {
    for (int i = 0; i < 2 * m * m; ++i) {
      c[i] += sums[i];
      sums[i] = Vec{};
    }
  };
  SummedRows<T> next(window, affine, of_groups, m, reflection, last, raw);
  int t = 0; // rows summed; y[0] holds row t when `ready`
  bool ready = false;
  const Vec *newest_change = change;
  for (int stop = 0; stop < n_stops; ++stop) {
    const int end = int(stops[stop]) - 1 - int(affine);
    while (t < end) {
      const int rows = end - t < kBlockRows ? end - t : kBlockRows;
      if (!ready)
        next.take(y);
      for (int k = 1; k <= rows; ++k)
        next.take(y + k * m);
      for (int i = 0; i < rows * m; ++i)
        change[i] = y[i + m] - y[i];
      add_outer<SimdLanes>(y, y, rows, m, true, sums);
      add_outer<SimdLanes>(change, y, rows, m, false, sums + m * m);
      for (int i = 0; i < m; ++i)
        y[i] = y[rows * m + i];
      newest_change = change + (rows - 1) * m;
      ready = true;
      t += rows;
      if (sums != c && (t == end || t % kRowsInARow < rows))
        add_sums();
    }
    at(stop, Moments{c, e, last, y, const_cast<Vec *>(newest_change), offset, reflection});
  }
}

} // namespace

} // namespace koopcore::cpu::KOOPCORE_ISA
