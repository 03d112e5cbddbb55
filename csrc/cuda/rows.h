// A group's snapshots, as a warp reads them: 8 snapshots × 16 parameters at a time.
//
// Lane l holds of tile i the snapshot 8 i + l / 4 and four parameters from 4 (l % 4) on. A 16-byte
// load of a warp then touches whole 32-byte sectors of 8 rows, and each of the four numbers is an
// operand of the 8 × 4 × 8 product of warp.h.
#pragma once

#include "cuda/problem.h"
#include "cuda/warp.h"

namespace koopcore::cuda {

constexpr int kChunk = 16; // parameters that a warp takes at a time for a Gram matrix

// Where a chunk lies: parameters first + stride·e for e from `from` on, those in [0, count).
struct Chunk {
  std::int64_t first, stride, count, from;
};

// The chunks, of Size parameters, of a run of segments. Contiguous segments are cut at multiples of
// Align parameters of the snapshot, so that chunks are aligned whenever the rows are.
template <int Size, int Align> class ChunksOf {
public:
  __device__ ChunksOf(const Groups &groups, std::int64_t segment, std::int64_t end,
                      std::int64_t within, std::int64_t count, int worker, int workers)
      : groups_(groups), segment_(segment), end_(end), within_(within), left_(count),
        worker_(worker), workers_(workers), skip_(worker) {
    open();
  }

  // Whether there is a chunk for this worker, which `at` then is.
  __device__ bool next(Chunk &at) {
    while (segment_ < end_ && left_ > 0) {
      const std::int64_t chunks = (run_.count - run_.from + Size - 1) / Size;
      if (skip_ < chunks) {
        at = run_;
        at.from += skip_ * Size;
        skip_ += workers_;
        return true;
      }
      skip_ -= chunks;
      left_ -= run_.count;
      within_ = 0;
      ++segment_;
      open();
    }
    return false;
  }

private:
  __device__ void open() {
    if (segment_ >= end_ || left_ <= 0)
      return;
    const std::int64_t stride = groups_.stride[segment_];
    const std::int64_t rest = groups_.length[segment_] - within_;
    run_.stride = stride;
    run_.first = groups_.start[segment_] + within_ * stride;
    run_.count = rest < left_ ? rest : left_;
    run_.from = stride == 1 ? -(run_.first & (Align - 1)) : 0;
  }

  const Groups &groups_;
  std::int64_t segment_, end_, within_, left_;
  int worker_, workers_;
  std::int64_t skip_;
  Chunk run_ = {};
};

using Chunks = ChunksOf<kChunk, kChunk>;

template <class T> struct Quad {
  T value[4];
};

// Four neighbouring numbers at an address aligned to 16 bytes.
__device__ inline Quad<float> load_quad(const float *p) {
  const float4 v = __ldg(reinterpret_cast<const float4 *>(p));
  return {{v.x, v.y, v.z, v.w}};
}
__device__ inline Quad<double> load_quad(const double *p) {
  const double2 a = __ldg(reinterpret_cast<const double2 *>(p));
  const double2 b = __ldg(reinterpret_cast<const double2 *>(p) + 1);
  return {{a.x, a.y, b.x, b.y}};
}

// Whether neighbouring parameters can be loaded as quads.
template <class T> __device__ inline bool rows_aligned(const Window &window) {
  return window.step == sizeof(T) && window.row % 16 == 0 &&
         reinterpret_cast<std::uintptr_t>(window.base) % 16 == 0;
}

// Four parameters column + s·stride, of which those exist whose bit is set.
struct Four {
  std::int64_t column, stride;
  unsigned int bits;

  __device__ bool has(int s) const { return bits >> s & 1; }
  __device__ bool side_by_side() const { return bits == 15 && stride == 1; }
};

// Those from position `e` on of `count` parameters that begin at `first`.
template <class Int>
__device__ inline Four four_from(std::int64_t first, std::int64_t stride, Int e, Int count) {
  unsigned int bits = 0;
  KOOPCORE_UNROLL
  for (int s = 0; s < 4; ++s)
    bits |= (e + s >= 0 && e + s < count ? 1u : 0u) << s;
  return {first + e * stride, stride, bits};
}

// Their numbers in one row of snapshots; zero for those that do not exist. `aligned`: see
// `rows_aligned`; four side by side must then begin at a multiple of four.
template <class T>
__device__ inline Quad<T> load_four(const char *row, const Four &at, std::int64_t step,
                                    bool aligned) {
  const char *p = row + at.column * step;
  if (aligned && at.side_by_side())
    return load_quad(reinterpret_cast<const T *>(p));
  Quad<T> x;
  KOOPCORE_UNROLL
  for (int s = 0; s < 4; ++s)
    x.value[s] = at.has(s) ? __ldg(reinterpret_cast<const T *>(p + s * at.stride * step)) : T(0);
  return x;
}

// The rows of one lane: snapshots 8 i + lane / 4 from `k0` on. Rows past the last snapshot repeat
// it, so that their differences are zero.
template <class T, int NT> struct LaneRows {
  const char *row[NT];
  const char *before; // snapshot k0 - 1, or null for the first rows
  std::int64_t step;
  bool aligned; // rows start at multiples of 16 bytes and numbers stand side by side

  __device__ LaneRows(const Window &window, int k0, int lane) : step(window.step) {
    KOOPCORE_UNROLL
    for (int i = 0; i < NT; ++i) {
      const int k = k0 + 8 * i + lane / 4;
      row[i] = window.at(k < window.n ? k : window.n - 1);
    }
    before = k0 > 0 ? window.at(k0 - 1) : nullptr;
    aligned = rows_aligned<T>(window);
  }

  // x[i]: four parameters of the chunk; zero outside of it. `above`: those of the row before.
  __device__ void load(const Chunk &at, int lane, Quad<T> (&x)[NT], Quad<T> &above) const {
    const std::int64_t e = at.from + 4 * (lane & 3);
    const std::int64_t offset = (at.first + e * at.stride) * step;
    if (aligned && at.stride == 1 && e >= 0 && e + 4 <= at.count) {
      KOOPCORE_UNROLL
      for (int i = 0; i < NT; ++i)
        x[i] = load_quad(reinterpret_cast<const T *>(row[i] + offset));
      if (before != nullptr && lane < 4)
        above = load_quad(reinterpret_cast<const T *>(before + offset));
      return;
    }
    const std::int64_t apart = at.stride * step;
    KOOPCORE_UNROLL
    for (int s = 0; s < 4; ++s) {
      const bool inside = e + s >= 0 && e + s < at.count;
      KOOPCORE_UNROLL
      for (int i = 0; i < NT; ++i)
        x[i].value[s] =
            inside ? __ldg(reinterpret_cast<const T *>(row[i] + offset + s * apart)) : T(0);
      if (before != nullptr && lane < 4)
        above.value[s] =
            inside ? __ldg(reinterpret_cast<const T *>(before + offset + s * apart)) : T(0);
    }
  }
};

// d[i] <- v[i] - (the row before): row 8 i + r stands in the lanes 4 r … 4 r + 3, so the row before
// is four lanes down, or in the last four lanes of the tile before. `above` is the row before the
// first one.
template <class T, int NT>
__device__ inline void take_differences(const T (&v)[NT], T above, int lane, T (&d)[NT]) {
  KOOPCORE_UNROLL
  for (int i = 0; i < NT; ++i) {
    T send = v[i];
    if (i > 0 && lane >= 28)
      send = v[i - 1];
    T previous = __shfl_sync(kAllLanes, send, (lane + 28) & 31);
    if (i == 0 && lane < 4)
      previous = above;
    d[i] = v[i] - previous;
  }
}

} // namespace koopcore::cuda
