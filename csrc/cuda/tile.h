// A group's snapshots in the shared memory of a block: read from memory once, used twice.
//
// Snapshot k is row k. Segments stand one after another, each from a multiple of four columns on
// and as far behind it as its first parameter stands behind a multiple of four, so that quads of a
// contiguous segment are aligned on both sides. What belongs to no parameter of the group is zero.
#pragma once

#include "cuda/rows.h"

namespace koopcore::cuda {

// Four neighbouring numbers straight from memory to shared memory, without a register in between;
// `await_fetches` waits for all that the thread has asked for.
template <class T> __device__ inline void fetch_quad(T *to, const T *from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const unsigned int at = static_cast<unsigned int>(__cvta_generic_to_shared(to));
  KOOPCORE_UNROLL
  for (int k = 0; k < int(sizeof(Quad<T>)); k += 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at + k),
                 "l"(reinterpret_cast<const char *>(from) + k)
                 : "memory");
#else
  *reinterpret_cast<Quad<T> *>(to) = load_quad(from);
#endif
}
__device__ inline void await_fetches() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// A segment as it stands in a tile: quad q has the parameters from position `from` + 4 q on.
struct Run {
  std::int64_t first, stride;
  int count, from;

  __device__ Four four(int q) const { return four_from(first, stride, from + 4 * q, count); }
};

template <class T> class Tile {
public:
  // Numbers from a row to the next: the quads that a warp reads of eight rows at once then lie in
  // different banks.
  KOOPCORE_HD static constexpr int pitch(int columns) {
    return sizeof(T) == 8 ? columns + 2 : columns + (columns % 32 == 0 ? 16 : 0);
  }

  // columns: a multiple of kChunk.
  __device__ Tile(T *at, int n, int columns)
      : at_(at), n_(n), columns_(columns), pitch_(pitch(columns)) {}

  // All threads of the block together; they must meet before they look at it.
  __device__ void load(const Window &window, const Groups &groups, std::int64_t group) {
    const bool aligned = rows_aligned<T>(window);
    each_segment(groups, group, [&](const Run &of, int column, int quads) {
      each_quad(quads, [&](int k, int q) {
        const Four four = of.four(q);
        const char *row = window.at(k);
        T *to = at_ + k * pitch_ + column + 4 * q;
        if (aligned && four.side_by_side())
          fetch_quad(to, reinterpret_cast<const T *>(row) + four.column);
        else
          *reinterpret_cast<Quad<T> *>(to) = load_four<T>(row, four, window.step, false);
      });
      used_ = column + 4 * quads;
    });
    chunks_ = (used_ + kChunk - 1) / kChunk;
    each_quad((chunks_ * kChunk - used_) / 4, [&](int k, int q) {
      *reinterpret_cast<Quad<T> *>(at_ + k * pitch_ + used_ + 4 * q) = {};
    });
    await_fetches();
  }

  __device__ int chunks() const { return chunks_; }

  // x[i]: what `LaneRows` loads of chunk `chunk`. Rows past the last snapshot repeat it.
  template <int NT> __device__ void quads(int chunk, int lane, Quad<T> (&x)[NT]) const {
    KOOPCORE_UNROLL
    for (int i = 0; i < NT; ++i) {
      const int k = 8 * i + lane / 4 < n_ ? 8 * i + lane / 4 : n_ - 1;
      x[i] = quad(k, chunk * kChunk + 4 * (lane & 3));
    }
  }

  // Four columns of snapshot k.
  __device__ Quad<T> quad(int k, int column) const {
    return *reinterpret_cast<const Quad<T> *>(at_ + k * pitch_ + column);
  }

  // Calls take(segment, its first column, its quads) for the segments, one after another.
  template <class Take>
  __device__ static void each_segment(const Groups &groups, std::int64_t group, Take &&take) {
    int column = 0;
    for (std::int64_t s = groups.ptr[group]; s < groups.ptr[group + 1]; ++s) {
      const std::int64_t first = groups.start[s], stride = groups.stride[s];
      const Run of{first, stride, int(groups.length[s]), stride == 1 ? -int(first & 3) : 0};
      const int quads = (of.count - of.from + 3) / 4;
      take(of, column, quads);
      column += 4 * quads;
    }
  }

private:
  // Calls take(k, q) for `quads` quads of every row: a warp takes rows, its lanes quads.
  template <class Take> __device__ void each_quad(int quads, Take &&take) const {
    const int lane = threadIdx.x & 31, warps = blockDim.x / 32;
    for (int k = threadIdx.x / 32; k < n_; k += warps)
      for (int q = lane; q < quads; q += 32)
        take(k, q);
  }

  T *at_;
  int n_, columns_, pitch_;
  int used_ = 0, chunks_ = 0;
};

} // namespace koopcore::cuda
