// The difference basis of a piece of a group, converted once to float64 into a cache-resident
// panel.
//
// Layout: chunks of W parameters; within a chunk the n rows x_1, d_1, …, d_{n-1}, W numbers each.
// Lanes past the last parameter are zero, so sums over whole chunks are exact.
#pragma once

#include "cpu/problem.h"
#include "cpu/simd.h"

namespace koopcore::cpu::KOOPCORE_ISA {

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

} // namespace koopcore::cpu::KOOPCORE_ISA
