// Accumulation of feature-side moments of W groups, for the stages that end in different things.
//
// Included only by files that are compiled per instruction set.
#pragma once

#include "algorithms/moments.h"
#include "algorithms/product.h"
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

// The numbers at W addresses: base + offset[lane].
template <class T> KOOPCORE_INLINE Vec gather_at(const char *base, const std::ptrdiff_t *offset) {
#if defined(__AVX512F__)
  const __m512i at = _mm512_loadu_si512(offset);
  const __m512d none = _mm512_setzero_pd();
  if (sizeof(T) == sizeof(double))
    return (Vec)_mm512_mask_i64gather_pd(none, 0xff, at, base, 1);
  return (Vec)_mm512_maskz_cvtps_pd(
      0xff, _mm512_mask_i64gather_ps(_mm256_setzero_ps(), 0xff, at, base, 1));
#else
  Narrow<T> x;
  for (int lane = 0; lane < kLanes; ++lane) {
    T one;
    __builtin_memcpy(&one, base + offset[lane], sizeof one);
    x[lane] = one;
  }
  return widen(x);
#endif
}

// The parameters of W groups of one snapshot, one group per lane.
template <class T> class GroupRows {
public:
  GroupRows(const std::ptrdiff_t *offset, int m) : offset_(offset), m_(m) {
    for (int i = 0; i < m && i < kMostPlanned; ++i) {
      plan_[i] = is_block(i) ? block : are_neighbours(i) ? neighbours : apart;
      // A line that the parameter before lies in, or the block before, has been fetched with it.
      const int before = i >= kLanes && plan_[i - kLanes] == block ? i - kLanes : i - 1;
      const std::ptrdiff_t distance = i == 0 ? 0 : at(i) - at(before);
      fetched_[i] = i > 0 && distance >= 0 && distance < kPrefetchLine;
    }
  }

  // out (m) <- the row, while the same of the next W groups is fetched, if they go on as these do.
  void take(const char *row, Vec *out) const {
    take_from(row, out, [&](int lane, const std::ptrdiff_t *from) {
      return row + from[lane] + kLanes * (from[1] - from[0]);
    });
  }

  // out (m) <- the row, while another one is fetched.
  void take(const char *row, const char *next, Vec *out) const {
    take_from(row, out, [&](int lane, const std::ptrdiff_t *from) { return next + from[lane]; });
  }

  // The same with rows of their own for the lanes: addresses as integers.
  void take(const std::ptrdiff_t *row, const std::ptrdiff_t *next, Vec *out) const {
    for (int i = 0; i < m_; ++i) {
      std::ptrdiff_t from[kLanes];
      for (int lane = 0; lane < kLanes; ++lane)
        from[lane] = row[lane] + offset_[i * kLanes + lane];
      if (i >= kMostPlanned || !fetched_[i])
        for (int lane = 0; lane < kLanes; ++lane)
          __builtin_prefetch(reinterpret_cast<const char *>(next[lane]) +
                             offset_[i * kLanes + lane]);
      out[i] = gather_at<T>(nullptr, from);
    }
  }

private:
  static constexpr int kMostPlanned = 64;
  // Of parameters i … i + W - 1, or of parameter i.
  enum Place : char {
    apart,      // anywhere
    block,      // neighbours in every group
    neighbours, // of parameter i in the groups of the lanes
  };

  template <class Fetch>
  KOOPCORE_INLINE void take_from(const char *row, Vec *out, Fetch fetch) const {
    for (int i = 0; i < m_;) {
      const std::ptrdiff_t *from = offset_ + i * kLanes;
      const Place place = i < kMostPlanned ? plan_[i] : apart;
      if (place == block) {
        for (int lane = 0; lane < kLanes; ++lane) {
          __builtin_prefetch(fetch(lane, from), 0, 2);
          out[i + lane] = load<T>(row + from[lane]);
        }
        transpose(out + i);
        i += kLanes;
        continue;
      }
      if (place == neighbours) {
        __builtin_prefetch(fetch(0, from), 0, 2);
        out[i] = load<T>(row + from[0]);
      } else {
        if (i >= kMostPlanned || !fetched_[i])
          for (int lane = 0; lane < kLanes; ++lane)
            __builtin_prefetch(fetch(lane, from), 0, 2);
        out[i] = gather_at<T>(row, from);
      }
      ++i;
    }
  }

  std::ptrdiff_t at(int i) const { return offset_[i * kLanes]; }

  bool is_block(int i) const {
    bool good = i + kLanes <= m_;
    for (int k = 1; good && k < kLanes; ++k)
      for (int lane = 0; lane < kLanes; ++lane)
        good &= offset_[(i + k) * kLanes + lane] ==
                offset_[i * kLanes + lane] + k * std::ptrdiff_t(sizeof(T));
    return good;
  }

  bool are_neighbours(int i) const {
    bool good = true;
    for (int lane = 1; lane < kLanes; ++lane)
      good &= offset_[i * kLanes + lane] == at(i) + lane * std::ptrdiff_t(sizeof(T));
    return good;
  }

  const std::ptrdiff_t *offset_;
  int m_;
  Place plan_[kMostPlanned] = {};
  bool fetched_[kMostPlanned] = {};
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
    reflection_.apply(last_, out, m_);
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

// The summed rows y_t and their changes y_{t+1} - y_t, in blocks. Rows: `SummedRows`, or what else
// has their `take`.
template <class Rows> class RowBlocks {
public:
  // memory: (2 kBlockRows + 1) m.
  RowBlocks(Rows rows, int m, Vec *memory)
      : rows_(rows), m_(m), y_(memory), change_(memory + (kBlockRows + 1) * m),
        newest_change_(change_) {}

  // Calls add(y, change, rows) for blocks of the rows that are left before `end`, and next() where
  // so many have been added in a row that what came of them is to be put aside.
  template <class Add, class Next> void until(int end, Add &&add, Next &&next) {
    while (t_ < end) {
      const int rows = end - t_ < kBlockRows ? end - t_ : kBlockRows;
      if (!ready_)
        rows_.take(y_);
      for (int k = 1; k <= rows; ++k)
        rows_.take(y_ + k * m_);
      for (int i = 0; i < rows * m_; ++i)
        change_[i] = y_[i + m_] - y_[i];
      add(y_, change_, rows);
      for (int i = 0; i < m_; ++i)
        y_[i] = y_[rows * m_ + i];
      newest_change_ = change_ + (rows - 1) * m_;
      ready_ = true;
      t_ += rows;
      if (t_ == end || t_ % kRowsInARow < rows)
        next();
    }
  }

  Vec *newest() { return y_; }                    // (m) y_end
  Vec *newest_change() { return newest_change_; } // (m) y_end - y_{end-1}

private:
  Rows rows_;
  int m_;
  Vec *y_, *change_, *newest_change_;
  int t_ = 0; // rows added; y_[0] holds row t_ when `ready_`
  bool ready_ = false;
};

// Sums over rows, of which long windows have two kinds: those of some rows and those of all before.
class LongSums {
public:
  // total (size) <- 0; memory: `size` where the window is long.
  LongSums(std::int64_t rows, Vec *total, int size, Vec *memory)
      : total_(total), size_(size), latest_(rows > kRowsInARow ? memory : total) {
    for (int i = 0; i < size; ++i)
      total_[i] = latest_[i] = Vec{};
  }
  Vec *latest() { return latest_; }
  void put_aside() {
    if (latest_ == total_)
      return;
    for (int i = 0; i < size_; ++i) {
      total_[i] += latest_[i];
      latest_[i] = Vec{};
    }
  }

private:
  Vec *total_;
  int size_;
  Vec *latest_;
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
  Vec *raw = v + m, *y = raw + m, *rest = y + (2 * kBlockRows + 1) * m;
  auto *offset = reinterpret_cast<std::ptrdiff_t *>(rest);
  find_offsets(groups, window.step, first, count, offset);
  const GroupRows<T> of_groups(offset, m);
  Reflection<SimdLanes> reflection{v, Vec{}, Vec{}};
  of_groups.take(window.rows[window.n - 1], last);
  if (!affine)
    reflection.set(last, m);
  LongSums sums(window.n, c, 2 * m * m, rest + m);
  RowBlocks<SummedRows<T>> blocks({window, affine, of_groups, m, reflection, last, raw}, m, y);
  for (int stop = 0; stop < n_stops; ++stop) {
    blocks.until(
        int(stops[stop]) - 1 - int(affine),
        [&](const Vec *rows, const Vec *change, int count_of_rows) {
          add_outer<SimdLanes>(rows, rows, count_of_rows, m, true, sums.latest());
          add_outer<SimdLanes>(change, rows, count_of_rows, m, false, sums.latest() + m * m);
        },
        [&] { sums.put_aside(); });
    at(stop, Moments{c, e, last, blocks.newest(), blocks.newest_change(), offset, reflection});
  }
}

inline std::size_t basis_scratch(int m) {
  return std::size_t(6 * m * m + m + (3 * kBlockRows + 1) * m) * kLanes;
}

// The sums of a second pass over the rows before stops[0], stops[1] … in turn, in the basis V (m,
// m), with at(stop index, sums) after each; `of` are the same groups' moments. sums: 3 m² in the
// order of `BasisSums`; scratch: basis_scratch(m).
template <class T, class At>
void accumulate_in_basis(const Window &window, bool affine, int m, const std::int64_t *stops,
                         int n_stops, const Moments &of, const Vec *basis, double *scratch,
                         At &&at) {
  const int matrix = m * m;
  Vec *total = reinterpret_cast<Vec *>(scratch), *memory = total + 3 * matrix;
  Vec *raw = memory + 3 * matrix, *z = raw + m, *y = z + kBlockRows * m;
  const GroupRows<T> of_groups(of.offset, m);
  LongSums sums(window.n, total, 3 * matrix, memory);
  RowBlocks<SummedRows<T>> blocks({window, affine, of_groups, m, of.reflection, of.last, raw}, m,
                                  y);
  for (int stop = 0; stop < n_stops; ++stop) {
    blocks.until(
        int(stops[stop]) - 1 - int(affine),
        [&](const Vec *rows, const Vec *change, int count) {
          multiply<SimdLanes, Left::plain>(rows, basis, count, m, m, z);
          add_outer<SimdLanes>(z, z, count, m, true, sums.latest());
          add_outer<SimdLanes>(rows, z, count, m, false, sums.latest() + matrix);
          add_outer<SimdLanes>(change, z, count, m, false, sums.latest() + 2 * matrix);
        },
        [&] { sums.put_aside(); });
    at(stop, total);
  }
}

} // namespace

} // namespace koopcore::cpu::KOOPCORE_ISA
