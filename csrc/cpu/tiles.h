// Register-tiled SYRK over a panel: products of rows, summed in vector lanes along the panel.
#pragma once

#include "cpu/simd.h"

namespace koopcore::cpu::KOOPCORE_ISA {

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

inline int rows_at(int n, int top) { return n - top < kTile ? n - top : kTile; }

inline int tile_count(int n) {
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

} // namespace koopcore::cpu::KOOPCORE_ISA
