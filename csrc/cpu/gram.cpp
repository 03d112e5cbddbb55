// Gram matrices G = BᵀB: a panel of the difference basis, then a register-tiled SYRK along it.
//
// Every product of two rows is summed in the lanes of one register; the lanes are added once, at
// the end of the piece. The entries come out in the order of the tiles; `gram_map` says which is
// which.
#include "cpu/kernels.h"
#include "cpu/panel.h"

namespace koopcore::cpu::KOOPCORE_ISA {

namespace {

// Rows of a tile: 16 sums and 5 operands fit 32 registers, 9 and 4 fit 16.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTile = 4;
#else
constexpr int kTile = 3;
#endif
constexpr int kPanelBytes = 32768;

constexpr int padded(int sums) { return (sums + kLanes - 1) / kLanes * kLanes; }
constexpr int tile_sums(int rows, bool diagonal) {
  return diagonal ? rows * (rows + 1) / 2 : rows * kTile;
}

// Panel columns for n rows: the panel stays in the first-level cache as long as n allows.
int panel_columns(int n) {
  const int columns = kPanelBytes / int(sizeof(double)) / n / kLanes * kLanes;
  return columns < 4 * kLanes ? 4 * kLanes : columns;
}

// Where the sums of a tile go: kept for the next panel, or added up and written out.
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

template <bool Diagonal>
void tile_of(int rows, const double *panel, int chunks, int n, int top, int left, Stage stage,
             Vec *sums, double *entries) {
  switch (rows) {
  case 1:
    return tile<1, Diagonal>(panel, chunks, n, top, left, stage, sums, entries);
  case 2:
    return tile<2, Diagonal>(panel, chunks, n, top, left, stage, sums, entries);
  case 3:
    return tile<3, Diagonal>(panel, chunks, n, top, left, stage, sums, entries);
  default:
    return tile<kTile, Diagonal>(panel, chunks, n, top, left, stage, sums, entries);
  }
}

int rows_at(int n, int top) { return n - top < kTile ? n - top : kTile; }

template <class T>
void gram_of(const Window &w, const Groups &groups, Piece piece, double *entries, double *scratch) {
  const int n = w.n, most = panel_columns(n);
  const std::int64_t panels = (piece.count + most - 1) / most;
  // Panels of equal width, so that none is left with a few columns.
  const std::int64_t even = (piece.count + panels - 1) / panels;
  const int width = int((even + kLanes - 1) / kLanes) * kLanes;
  double *panel = scratch;
  Vec *sums = reinterpret_cast<Vec *>(panel + std::size_t(most) * n);
  bool resume = false;
  for (std::int64_t left = piece.count; left > 0;) {
    const int columns = left < width ? int(left) : width;
    left -= columns;
    pack<T>(w, groups, piece, columns, panel);
    const int chunks = (columns + kLanes - 1) / kLanes;
    const Stage stage{resume, left == 0};
    int at = 0;
    for (int top = 0; top < n; top += kTile) {
      const int rows = rows_at(n, top);
      for (int across = 0; across < top; across += kTile) {
        tile_of<false>(rows, panel, chunks, n, top, across, stage, sums + at, entries + at);
        at += padded(tile_sums(rows, false));
      }
      tile_of<true>(rows, panel, chunks, n, top, top, stage, sums + at, entries + at);
      at += padded(tile_sums(rows, true));
    }
    resume = true;
  }
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
  return std::size_t(panel_columns(n)) * n + std::size_t(gram_entries(n)) * kLanes;
}

void gram_piece(const Window &w, const Groups &groups, Piece piece, double *entries,
                double *scratch) {
  if (w.is_double)
    gram_of<double>(w, groups, piece, entries, scratch);
  else
    gram_of<float>(w, groups, piece, entries, scratch);
}

} // namespace koopcore::cpu::KOOPCORE_ISA
