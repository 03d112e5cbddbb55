// Rows of numbers, one group each, into vectors of one group per lane, and back.
//
// Included only by files that are compiled per instruction set.
#pragma once

#include "cpu/simd.h"

namespace koopcore::cpu::KOOPCORE_ISA {

namespace {

// out[i] <- entry i of W rows, `rows` apart; lanes past `count` repeat the first row.
inline void to_lanes(const double *from, std::ptrdiff_t rows, int count, int entries, Vec *out) {
  const double *row[kLanes];
  for (int lane = 0; lane < kLanes; ++lane)
    row[lane] = from + (lane < count ? lane : 0) * rows;
  int i = 0;
  for (; i + kLanes <= entries; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane)
      __builtin_memcpy(&out[i + lane], row[lane] + i, sizeof(Vec));
    transpose(out + i);
  }
  for (; i < entries; ++i)
    for (int lane = 0; lane < kLanes; ++lane)
      out[i][lane] = row[lane][i];
}

inline void from_lanes(const Vec *from, std::ptrdiff_t rows, int count, int entries, double *out) {
  int i = 0;
  for (; i + kLanes <= entries; i += kLanes) {
    Vec block[kLanes];
    for (int lane = 0; lane < kLanes; ++lane)
      block[lane] = from[i + lane];
    transpose(block);
    for (int lane = 0; lane < count; ++lane)
      __builtin_memcpy(out + lane * rows + i, &block[lane], sizeof(Vec));
  }
  for (; i < entries; ++i)
    for (int lane = 0; lane < count; ++lane)
      out[lane * rows + i] = from[i][lane];
}

} // namespace

} // namespace koopcore::cpu::KOOPCORE_ISA
