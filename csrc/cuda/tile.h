// A group's snapshots in the shared memory of a block: read from memory once, used twice.
//
// Snapshot k is row k. Segments stand one after another, each from a multiple of four columns on
// and as far behind it as its first parameter stands behind a multiple of four, so that quads of a
// contiguous segment are aligned on both sides. What belongs to no parameter of the group is zero.
#pragma once

#include "cuda/fetch.h"
#include "cuda/rows.h"

namespace koopcore::cuda {

// Four neighbouring numbers of shared memory, at a multiple of 16 bytes.
__device__ inline Quad<float> read_quad(const float *p) {
  const float4 v = *reinterpret_cast<const float4 *>(p);
  return {{v.x, v.y, v.z, v.w}};
}
__device__ inline Quad<double> read_quad(const double *p) {
  const double2 a = *reinterpret_cast<const double2 *>(p);
  const double2 b = *(reinterpret_cast<const double2 *>(p) + 1);
  return {{a.x, a.y, b.x, b.y}};
}
// Four neighbouring numbers straight from memory to shared memory.
template <class T> __device__ inline void fetch_quad(T *to, const T *from) {
  KOOPCORE_UNROLL
  for (int k = 0; k < int(sizeof(Quad<T>)); k += 16)
    fetch_bytes<16>(reinterpret_cast<char *>(to) + k, reinterpret_cast<const char *>(from) + k);
}

// A segment as it stands in a tile: quad q has the parameters from position `from` + 4 q on.
struct Run {
  std::int64_t first, stride;
  int count, from;

  __device__ Four four(int q) const { return four_from(first, stride, from + 4 * q, count); }
};

// Where every snapshot of the window begins, into rows (n), by all threads of the block.
__device__ inline void find_rows(const Window &window, const char **rows) {
  for (int k = threadIdx.x; k < window.n; k += blockDim.x)
    rows[k] = window.at(k);
}

template <class T> class Tile {
public:
  // Numbers from a row to the next: the quads that a warp reads of eight rows at once then lie in
  // different banks.
  KOOPCORE_HD static constexpr int pitch(int columns) {
    return sizeof(T) == 8 ? columns + 2 : columns + (columns % 32 == 0 ? 16 : 0);
  }

  // columns: a multiple of kChunk.
  __device__ Tile(T *at, int n, int columns) : at_(at), n_(n), pitch_(pitch(columns)) {}

  // All threads of the block together; they meet in between and must meet again afterwards. rows:
  // where every snapshot begins, as `find_rows` leaves it.
  __device__ void load(const Window &window, const char *const *rows, const Groups &groups,
                       std::int64_t group) {
    const bool aligned = rows_aligned<T>(window);
    const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
    int used = 0;
    each_segment(groups, group, [&](const Run &of, int column, int quads) {
#pragma unroll 1
      for (int q = threadIdx.x & 31; q < quads; q += 32) { // lanes take quads, warps rows
        const Four four = of.four(q);
        T *to = at_ + column + 4 * q;
        if (aligned && of.stride == 1 && four.column + 4 <= window.size) {
          const std::int64_t offset = four.column * sizeof(T);
#pragma unroll 2
          for (int k = warp; k < n_; k += warps) // in the end quads with what neighbours have
            fetch_quad(to + k * pitch_, reinterpret_cast<const T *>(rows[k] + offset));
        } else {
#pragma unroll 1
          for (int k = warp; k < n_; k += warps) { // what is not there is cleared below
            const char *from = rows[k] + four.column * window.step;
#pragma unroll 1 // registers are short
            for (int s = 0; s < 4; ++s)
              if (four.has(s))
                fetch_number(to + k * pitch_ + s,
                             reinterpret_cast<const T *>(from + s * four.stride * window.step));
          }
        }
      }
      used = column + 4 * quads;
    });
    chunks_ = (used + kChunk - 1) / kChunk;
    await_fetches();
    __syncthreads();
#pragma unroll 1
    for (int k = threadIdx.x; k < n_; k += blockDim.x) {
      T *row = at_ + k * pitch_;
      each_segment(groups, group, [&](const Run &of, int column, int quads) {
        clear(row + column, row + column - of.from);
        clear(row + column - of.from + of.count, row + column + 4 * quads);
      });
      clear(row + used, row + chunks_ * kChunk);
    }
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
  __device__ Quad<T> quad(int k, int column) const { return read_quad(at_ + k * pitch_ + column); }

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
  __device__ static void clear(T *from, T *end) {
#pragma unroll 1
    for (; from < end; ++from)
      *from = T(0);
  }

  T *at_;
  int n_, pitch_, chunks_ = 0;
};

} // namespace koopcore::cuda
