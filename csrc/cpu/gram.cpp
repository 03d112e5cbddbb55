// Gram matrices G = BᵀB: a panel of the difference basis, then a register-tiled SYRK along it.
//
// Every product of two rows is summed in the lanes of one register; the lanes are added once, at
// the end of the piece. The entries come out in the order of the tiles; `gram_map` says which is
// which.
#include "cpu/kernels.h"
#include "cpu/panel.h"
#include "cpu/tiles.h"

namespace koopcore::cpu::KOOPCORE_ISA {

namespace {

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
          __builtin_prefetch(w.rows[k] + end + at, 0, 1);
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
