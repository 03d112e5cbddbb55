// Gram matrices G = BᵀB: a panel of the difference basis, then a register-tiled SYRK along it.
//
// Mirrors cuda/gram.cu. Every product of two rows is summed in the lanes of one register; the lanes
// are added once, at the end of the piece. The entries come out in the order of the tiles;
// `gram_map` says which is which.
#include "algorithms/lanes.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace koopcore::cpu::KOOPCORE_ISA {

namespace {

// The panel: the difference basis of a piece, converted once to float64, in the cache. Chunks of W
// parameters; in a chunk the n rows x_1, d_1, …, d_{n-1}, W numbers each. Lanes past the last
// parameter are zero, so sums over whole chunks are exact.

// Writes the n rows of one chunk; `row(k)` gives the vector of snapshot k.
template <class Row> KOOPCORE_INLINE void difference_rows(int n, double *chunk, Row row) {
  Vec previous = row(0);
  __builtin_memcpy(chunk, &previous, sizeof(Vec));
  for (int k = 1; k < n; ++k) {
    const Vec current = row(k);
    const Vec difference = current - previous;
    __builtin_memcpy(chunk + k * kLanes, &difference, sizeof(Vec));
    previous = current;
  }
}

// Adds the parameters one by one to a chunk that holds `lane` of them already.
template <class T>
void fill_lanes(const Window &w, std::ptrdiff_t offset, std::ptrdiff_t step, int lane, int count,
                double *chunk) {
  for (int i = 0; i < count; ++i, ++lane, offset += step) {
    double previous = 0.0;
    for (int k = 0; k < w.n; ++k) {
      T x;
      __builtin_memcpy(&x, w.rows[k] + offset, sizeof x);
      chunk[k * kLanes + lane] = k == 0 ? double(x) : double(x) - previous;
      previous = x;
    }
  }
}

// Packs the next `columns` parameters of the piece and moves it on. Returns where the last of them
// ends in a snapshot, in bytes.
template <class T>
std::ptrdiff_t pack(const Window &w, const Groups &groups, Piece &at, int columns, double *panel) {
  const int chunk_size = w.n * kLanes;
  std::ptrdiff_t end = 0;
  int done = 0;
  while (done < columns) {
    const std::int64_t stride = groups.stride[at.segment];
    const std::int64_t left = groups.length[at.segment] - at.within;
    int take = columns - done;
    if (left < take)
      take = int(left);
    const std::int64_t first = groups.start[at.segment] + at.within * stride;
    const std::ptrdiff_t step = w.step * stride;
    std::ptrdiff_t offset = w.step * first;
    end = offset + take * step;
    at.within += take;
    if (at.within == groups.length[at.segment]) {
      ++at.segment;
      at.within = 0;
    }
    const int lane = done % kLanes;
    if (lane != 0) { // complete the chunk that the segment before has begun
      const int some = take < kLanes - lane ? take : kLanes - lane;
      fill_lanes<T>(w, offset, step, lane, some, panel + done / kLanes * chunk_size);
      done += some;
      take -= some;
      offset += some * step;
    }
    double *chunk = panel + done / kLanes * chunk_size;
    done += take;
    if (step == sizeof(T)) {
      for (; take >= kLanes; take -= kLanes, offset += kLanes * step, chunk += chunk_size)
        difference_rows(w.n, chunk, [&](int k) { return load<T>(w.rows[k] + offset); });
    } else {
      for (; take >= kLanes; take -= kLanes, offset += kLanes * step, chunk += chunk_size)
        difference_rows(w.n, chunk,
                        [&](int k) { return gather<T>(w.rows[k] + offset, step, kLanes); });
    }
    if (take > 0 && step == sizeof(T))
      difference_rows(w.n, chunk, [&](int k) { return load_first<T>(w.rows[k] + offset, take); });
    else if (take > 0)
      difference_rows(w.n, chunk, [&](int k) { return gather<T>(w.rows[k] + offset, step, take); });
  }
  return end;
}

// The tiles: products of rows of the panel, summed in vector lanes along it.

// Rows of a tile: 16 sums and 5 operands fit 32 registers, 9 and 4 fit 16.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTile = 4;
#else
constexpr int kTile = 3;
#endif

constexpr int padded(int sums) { return (sums + kLanes - 1) / kLanes * kLanes; }
constexpr int tile_sums(int rows, bool diagonal) {
  return diagonal ? rows * (rows + 1) / 2 : rows * kTile;
}

// Whether the sums of a tile go on from the panel before, and whether this panel is the last: their
// lanes are then added and written out.
struct Stage {
  bool resume, finish;
};

template <int R, bool Diagonal>
void tile(const double *panel, int chunks, int n, int top, int left, Stage stage, Vec *sums,
          double *entries) {
  constexpr int used = tile_sums(R, Diagonal);
  constexpr int C = Diagonal ? R : kTile;
  Vec s[padded(used)];
  for (int i = 0; i < padded(used); ++i)
    s[i] = stage.resume && i < used ? sums[i] : Vec{};
  const double *a = panel + top * kLanes, *b = panel + left * kLanes;
  for (int chunk = 0; chunk < chunks; ++chunk, a += n * kLanes, b += n * kLanes) {
    Vec x[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
      __builtin_memcpy(&x[r], a + r * kLanes, sizeof(Vec));
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      Vec y;
      if (Diagonal)
        y = x[c];
      else
        __builtin_memcpy(&y, b + c * kLanes, sizeof(Vec));
#pragma GCC unroll 4
      for (int r = Diagonal ? c : 0; r < R; ++r)
        s[Diagonal ? r * (r + 1) / 2 + c : r * kTile + c] += x[r] * y;
    }
  }
  if (!stage.finish) {
    for (int i = 0; i < used; ++i)
      sums[i] = s[i];
    return;
  }
  for (int i = 0; i < padded(used); i += kLanes) {
    const Vec total = sum_lanes(s + i);
    __builtin_memcpy(entries + i, &total, sizeof total);
  }
}

// The tile of as many rows as there are, kTile at most.
template <bool Diagonal, int R = kTile>
void tile_of(int rows, const double *panel, int chunks, int n, int top, int left, Stage stage,
             Vec *sums, double *entries) {
  if constexpr (R > 1)
    if (rows < R)
      return tile_of<Diagonal, R - 1>(rows, panel, chunks, n, top, left, stage, sums, entries);
  tile<R, Diagonal>(panel, chunks, n, top, left, stage, sums, entries);
}

int rows_at(int n, int top) { return n - top < kTile ? n - top : kTile; }

int tile_count(int n) {
  const int blocks = (n + kTile - 1) / kTile;
  return blocks * (blocks + 1) / 2;
}

// Adds the products of all rows of the panel, tile by tile: `sums` in the order of the tiles, and
// at the end the totals of the lanes in `entries`, unless the lanes stand for different groups.
// before(i) is called before tile i.
template <class Before>
void add_tiles(const double *panel, int chunks, int n, Stage stage, Vec *sums, double *entries,
               Before &&before) {
  int at = 0, tiles = 0;
  for (int top = 0; top < n; top += kTile) {
    const int rows = rows_at(n, top);
    for (int across = 0; across < top; across += kTile) {
      before(tiles++);
      tile_of<false>(rows, panel, chunks, n, top, across, stage, sums + at, entries + at);
      at += padded(tile_sums(rows, false));
    }
    before(tiles++);
    tile_of<true>(rows, panel, chunks, n, top, top, stage, sums + at, entries + at);
    at += padded(tile_sums(rows, true));
  }
}

constexpr int kPanelBytes = 32768;
// Groups of at most this many parameters are taken W at a time, one per lane.
constexpr int kLaneParameters = 96;

// Panel columns for n rows: the panel stays in the first-level cache as long as n allows.
int panel_columns(int n) {
  const int columns = kPanelBytes / int(sizeof(double)) / n / kLanes * kLanes;
  return columns < 4 * kLanes ? 4 * kLanes : columns;
}

template <class T>
void gram_of(const Window &w, const Groups &groups, Piece piece, double *entries, double *scratch) {
  const int n = w.n, most = panel_columns(n);
  const std::int64_t panels = (piece.count + most - 1) / most;
  // Panels of equal width, so that none is left with a few columns.
  const std::int64_t even = (piece.count + panels - 1) / panels;
  const int width = int((even + kLanes - 1) / kLanes) * kLanes, tiles = tile_count(n);
  const std::ptrdiff_t bytes = width * std::ptrdiff_t(sizeof(T));
  double *panel = scratch;
  Vec *sums = reinterpret_cast<Vec *>(panel + std::size_t(most) * n);
  bool resume = false;
  for (std::int64_t left = piece.count; left > 0;) {
    const int columns = left < width ? int(left) : width;
    left -= columns;
    const std::ptrdiff_t end = pack<T>(w, groups, piece, columns, panel);
    const int chunks = (columns + kLanes - 1) / kLanes;
    // Fetched during the products, a few rows to a tile: what stands behind this panel, which is
    // the next one where the parameters are neighbours.
    const auto fetch = [&](int tile) {
      for (int k = tile; k < n; k += tiles)
        for (std::ptrdiff_t at = 0; at < bytes; at += kPrefetchLine)
          __builtin_prefetch(w.rows[k] + end + at, 0, 3);
    };
    add_tiles(panel, chunks, n, {resume, left == 0}, sums, entries, fetch);
    resume = true;
  }
}

// W groups of m parameters at once: their columns are transposed on the way into the panel, so that
// a lane is a group, nothing has to be added across lanes, and small m wastes no lane.
template <class T> class LanePanel {
public:
  LanePanel(const Window &w, const Groups &groups, std::int64_t first) : w_(w), groups_(groups) {
    for (int lane = 0; lane < kLanes; ++lane)
      at_[lane] = {groups.ptr[first + lane], 0, 0};
  }

  // Packs the next `columns` parameters of every group.
  void pack(int columns, double *panel) {
    while (columns > 0) {
      int take = columns;
      bool contiguous = true;
      std::ptrdiff_t offset[kLanes], step[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        const Piece &at = at_[lane];
        const std::int64_t left = groups_.length[at.segment] - at.within;
        take = left < take ? int(left) : take;
        step[lane] = w_.step * groups_.stride[at.segment];
        offset[lane] = w_.step * groups_.start[at.segment] + at.within * step[lane];
        contiguous = contiguous && step[lane] == sizeof(T);
      }
      advance(take);
      columns -= take;
      for (; contiguous && take >= kLanes; take -= kLanes) {
        block(offset, panel);
        panel += kLanes * w_.n * kLanes;
        for (int lane = 0; lane < kLanes; ++lane)
          offset[lane] += kLanes * sizeof(T);
      }
      for (; take > 0; --take) {
        column(offset, panel);
        panel += w_.n * kLanes;
        for (int lane = 0; lane < kLanes; ++lane)
          offset[lane] += step[lane];
      }
    }
  }

private:
  void advance(int take) {
    for (Piece &at : at_) {
      at.within += take;
      if (at.within == groups_.length[at.segment])
        at = {at.segment + 1, 0, 0};
    }
  }

  void block(const std::ptrdiff_t *offset, double *panel) const {
    // Fetched ahead: the same columns of the next W groups, if they go on as these do. Two blocks
    // of float32 share a cache line, so each block asks for every other group.
    const std::ptrdiff_t ahead = kLanes * (offset[1] - offset[0]);
    const int odd = int(offset[0] / std::ptrdiff_t(kLanes * sizeof(T))) & 1;
    Vec previous[kLanes], v[kLanes];
    for (int k = 0; k < w_.n; ++k, panel += kLanes) {
      for (int lane = odd; lane < kLanes; lane += 2)
        __builtin_prefetch(w_.rows[k] + offset[lane] + ahead);
      for (int lane = 0; lane < kLanes; ++lane)
        v[lane] = load<T>(w_.rows[k] + offset[lane]);
      transpose(v);
      for (int c = 0; c < kLanes; ++c) {
        const Vec entry = k == 0 ? v[c] : v[c] - previous[c];
        __builtin_memcpy(panel + c * w_.n * kLanes, &entry, sizeof entry);
        previous[c] = v[c];
      }
    }
  }

  void column(const std::ptrdiff_t *offset, double *panel) const {
    difference_rows(w_.n, panel, [&](int k) {
      Narrow<T> x;
      for (int lane = 0; lane < kLanes; ++lane) {
        T one;
        __builtin_memcpy(&one, w_.rows[k] + offset[lane], sizeof one);
        x[lane] = one;
      }
      return widen(x);
    });
  }

  const Window &w_;
  const Groups &groups_;
  Piece at_[kLanes];
};

template <class T>
void gram_of_lanes(const Window &w, const Groups &groups, std::int64_t first, int m,
                   const std::int32_t *map, Vec *gram, double *scratch) {
  const int n = w.n, entries = gram_entries(n);
  // Parameters per panel, a multiple of W: one of these takes the room of W columns of a piece.
  const int fit = panel_columns(n) / kLanes / kLanes * kLanes;
  const int most = fit < kLanes ? kLanes : fit;
  const int panels = (m + most - 1) / most;
  const int width = ((m + panels - 1) / panels + kLanes - 1) / kLanes * kLanes;
  Vec *sums = reinterpret_cast<Vec *>(scratch);
  double *panel = scratch + std::size_t(entries) * kLanes;
  LanePanel<T> lanes(w, groups, first);
  for (int done = 0; done < m; done += width) {
    const int columns = m - done < width ? m - done : width;
    lanes.pack(columns, panel);
    add_tiles(panel, columns, n, {done > 0, false}, sums, nullptr, [](int) {});
  }
  for (int i = 0; i < entries; ++i)
    if (map[i] >= 0)
      gram[map[i]] = sums[i];
}

// m of W groups of equal and small size; 0 otherwise.
int equal_small_size(const Groups &groups, std::int64_t first) {
  std::int64_t common = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    std::int64_t m = 0;
    for (std::int64_t s = groups.ptr[first + lane]; s < groups.ptr[first + lane + 1]; ++s)
      m += groups.length[s];
    if (m > kLaneParameters || (lane > 0 && m != common))
      return 0;
    common = m;
  }
  return int(common);
}

} // namespace

int gram_entries(int n) {
  int total = 0;
  for (int top = 0; top < n; top += kTile)
    total += top / kTile * padded(tile_sums(rows_at(n, top), false)) +
             padded(tile_sums(rows_at(n, top), true));
  return total;
}

void gram_map(int n, std::int32_t *map) {
  for (int top = 0; top < n; top += kTile)
    for (int left = 0; left <= top; left += kTile) {
      const bool diagonal = left == top;
      const int rows = rows_at(n, top), slots = padded(tile_sums(rows, diagonal));
      for (int i = 0; i < slots; ++i)
        map[i] = -1;
      for (int r = 0; r < rows; ++r)
        for (int c = 0; c < (diagonal ? r + 1 : kTile); ++c)
          map[diagonal ? r * (r + 1) / 2 + c : r * kTile + c] = packed_index(top + r, left + c);
      map += slots;
    }
}

std::size_t gram_scratch(int n) {
  const int columns = panel_columns(n) < kLanes * kLanes ? kLanes * kLanes : panel_columns(n);
  return std::size_t(columns) * n + std::size_t(gram_entries(n)) * kLanes;
}

void gram_piece(const Window &w, const Groups &groups, Piece piece, double *entries,
                double *scratch) {
  if (w.is_double)
    gram_of<double>(w, groups, piece, entries, scratch);
  else
    gram_of<float>(w, groups, piece, entries, scratch);
}

bool gram_lanes(const Window &w, const Groups &groups, std::int64_t first, const std::int32_t *map,
                double *lanes, double *scratch) {
  const int m = equal_small_size(groups, first);
  if (m == 0)
    return false;
  (w.is_double ? gram_of_lanes<double> : gram_of_lanes<float>)(w, groups, first, m, map,
                                                               reinterpret_cast<Vec *>(lanes),
                                                               scratch);
  return true;
}

} // namespace koopcore::cpu::KOOPCORE_ISA
