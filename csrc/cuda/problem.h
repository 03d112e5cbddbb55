// What the kernels work on, in device memory: a window of snapshots, groups of parameters, outputs.
//
// Mirrors cpu/problem.h. All are passed to kernels by value.
#pragma once

#include "algorithms/lanes.h"

#include <cstddef>
#include <cstdint>

namespace koopcore::cuda {

// How numbers are stored: the codes that Python passes.
enum Kind : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2 };

// Snapshot k of parameter j is at base + slot(k)·row + j·step, oldest first.
struct Window {
  const char *base;
  std::int64_t row, step;    // bytes
  std::int64_t first, slots; // snapshot k is in row first + k, wrapped around at `slots` …
  const std::int64_t *order; // … or in row order[k], where this is not null
  std::int64_t size;         // parameters in a snapshot
  int n;
  bool is_double;

  KOOPCORE_HD const char *at(int k) const {
    std::int64_t slot = first + k;
    if (order != nullptr)
      slot = order[k];
    else if (slot >= slots)
      slot -= slots;
    return base + slot * row;
  }
};

// The partition: group g owns the segments ptr[g] … ptr[g+1] - 1; a segment covers the parameters
// start + stride·(0 … length - 1).
struct Groups {
  const std::int64_t *ptr, *start, *length, *stride;
  std::int64_t count;
};

// `count` consecutive parameters of one group, from position `within` of `segment`.
struct Piece {
  std::int64_t group, segment, within, count;
};

// What is done together: groups small[i] by one warp each, pieces by one block each. The first
// n_middle pieces are whole groups; the others are of large groups, group large_group[l] having the
// pieces n_middle + large_piece[l] … n_middle + large_piece[l+1] - 1, added up in that order.
struct Plan {
  const std::int64_t *small; // null: all groups, in order
  std::int64_t n_small;
  const Piece *pieces;
  std::int64_t n_middle, n_pieces;
  const std::int64_t *large_group, *large_piece;
  std::int64_t n_large;
};

// Groups that a block of `warps` warps takes one at a time, in one pass: group[i], or all of them
// where that is null. None fills more than `columns` columns of shared memory (tile.h).
struct Share {
  const std::int64_t *group;
  std::int64_t count;
  int columns, warps;
};

// Where packed Gram matrices go: entry e of group g at data + (g / 32)·tile + (g % 32)·lane +
// e·entry. Groups side by side (lane = 1, entry = 32) are what `solve` reads; (tile = 32 E, lane =
// E, entry = 1) is one packed row per group.
struct GramLayout {
  double *data;
  std::int64_t tile, lane, entry;

  KOOPCORE_HD double *group(std::int64_t g) const {
    return data + (g >> 5) * tile + (g & 31) * lane;
  }
};

constexpr int kBatch = 32;        // groups that stand side by side: the lanes of a warp
constexpr int kMostWhole = 32;    // longest window whose Gram matrix fits the registers of a warp
constexpr int kMostHorizons = 64; // of one launch; the caller splits longer lists

struct Horizons {
  int count;
  std::int64_t ascending[kMostHorizons]; // each at least 1
  int slot[kMostHorizons];               // where in the outputs horizon i goes
};

// A (rows, size) array.
struct Output {
  char *data;
  std::int64_t row, step; // bytes
  Kind kind;
};

// Tensors that together make up a snapshot: tensor t has the parameters start[t] … start[t] +
// length[t] - 1, in ascending order. block[t] is the first of its blocks of kTensorBlock numbers.
struct Tensors {
  std::int64_t count; // 0: none
  char *const *data;
  const std::int64_t *start, *length;
  const std::int32_t *kind;
  const std::int64_t *block; // (count + 1)
  std::int64_t blocks;
};
constexpr int kTensorBlock = 4096;

} // namespace koopcore::cuda
