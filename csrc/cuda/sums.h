// The sums of a Gram matrix in the registers of a warp: fp64 tensor cores, or pairs of floats.
//
// GramSums<T, NT> covers 8 NT snapshots. After `finish`, lane l holds kValues entries of the lower
// triangle in `value`; `place` says which.
#pragma once

#include "cuda/rows.h"
#include "cuda/two_float.h"

#include <type_traits>

namespace koopcore::cuda {

struct Entry {
  int row, column;
};

// Products of 8 × 8 tiles, i >= j.
template <class T, int NT> class TensorSums {
public:
  static constexpr int kTiles = NT * (NT + 1) / 2;
  static constexpr int kValues = 2 * kTiles;
  static constexpr int kScratch = 0; // floats of shared memory of each warp

  __device__ explicit TensorSums(float *) {
    KOOPCORE_UNROLL
    for (int k = 0; k < kValues; ++k)
      value[k] = 0.0;
  }

  __device__ void add(const Quad<T> (&x)[NT], int lane) {
    KOOPCORE_UNROLL
    for (int s = 0; s < 4; ++s) {
      double v[NT], d[NT];
      KOOPCORE_UNROLL
      for (int i = 0; i < NT; ++i)
        v[i] = double(x[i].value[s]);
      take_differences<double, NT>(v, 0.0, lane, d);
      KOOPCORE_UNROLL
      for (int i = 0; i < NT; ++i)
        KOOPCORE_UNROLL
      for (int j = 0; j <= i; ++j) {
        const int tile = i * (i + 1) / 2 + j;
        multiply_add_8x4x8(d[i], d[j], value[2 * tile], value[2 * tile + 1]);
      }
    }
  }

  __device__ void finish(int) {}

  __device__ static Entry place(int k, int lane) {
    const int tile = k / 2;
    int i = 0;
    while ((i + 1) * (i + 2) / 2 <= tile)
      ++i;
    const int j = tile - i * (i + 1) / 2;
    return {8 * i + lane / 4, 8 * j + 2 * (lane & 3) + (k & 1)};
  }

  double value[kValues];
};

// The same in pairs of floats, for parts without fast fp64: lanes have 4 × 4 tiles, and slices of
// the parameters where there are fewer tiles than lanes. Differences go through shared memory as
// floats: exact where successive snapshots are within a factor of two, and else rounded like the
// snapshots themselves.
template <int NT> class TwoFloatSums {
public:
  static constexpr int kBlocks = 2 * NT;
  static constexpr int kTiles = kBlocks * (kBlocks + 1) / 2;
  static constexpr int kSlices = kTiles < 32 ? 32 / kTiles : 1;
  static constexpr int kLaneTiles = (kTiles + 31) / 32; // tiles of a lane
  static constexpr int kValues = 16 * kLaneTiles;
  static constexpr int kPitch = kChunk + 1; // odd: lanes of different rows use different banks
  static constexpr int kScratch = 8 * NT * kPitch;

  __device__ explicit TwoFloatSums(float *scratch) : scratch_(scratch) {
    KOOPCORE_UNROLL
    for (int k = 0; k < kValues; ++k)
      sum_[k] = total_[k] = {0.0f, 0.0f};
  }

  __device__ void add(const Quad<float> (&x)[NT], int lane) {
    __syncwarp();
    KOOPCORE_UNROLL
    for (int s = 0; s < 4; ++s) {
      float v[NT], d[NT];
      KOOPCORE_UNROLL
      for (int i = 0; i < NT; ++i)
        v[i] = x[i].value[s];
      take_differences<float, NT>(v, 0.0f, lane, d);
      KOOPCORE_UNROLL
      for (int i = 0; i < NT; ++i)
        scratch_[(8 * i + lane / 4) * kPitch + 4 * (lane & 3) + s] = d[i];
    }
    __syncwarp();
    KOOPCORE_UNROLL
    for (int t = 0; t < kLaneTiles; ++t) {
      if (!has(t, lane))
        continue;
      const Entry at = corner(t, lane);
      const float *a = scratch_ + at.row * kPitch, *b = scratch_ + at.column * kPitch;
      for (int k = slice(lane); k < kChunk; k += kSlices) {
        KOOPCORE_UNROLL
        for (int r = 0; r < 4; ++r)
          KOOPCORE_UNROLL
        for (int c = 0; c < 4; ++c)
          sum_[16 * t + 4 * r + c].add_product(a[r * kPitch + k], b[c * kPitch + k]);
      }
    }
    if (++chunks_ % kTogether == 0)
      collect();
  }

  // Adds the slices up, in their order, in the lanes of the first one.
  __device__ void finish(int lane) {
    collect();
    KOOPCORE_UNROLL
    for (int k = 0; k < kValues; ++k) {
      const double part = double(total_[k].hi) + double(total_[k].lo);
      double all = part;
      for (int s = 1; s < kSlices; ++s)
        all += __shfl_sync(kAllLanes, part, (lane + s * kTiles) & 31);
      value[k] = all;
    }
  }

  // Entries of lanes that have none lie outside every matrix.
  __device__ static Entry place(int k, int lane) {
    const int t = k / 16;
    if (!has(t, lane) || (kSlices > 1 && lane >= kTiles))
      return {1 << 20, 0};
    const Entry at = corner(t, lane);
    return {at.row + k % 16 / 4, at.column + k % 4};
  }

  double value[kValues];

private:
  // Short sums are added up apart: an error of u² for every few chunks, not for every product.
  static constexpr int kTogether = kSlices > 1 ? 2 : 1;

  __device__ void collect() {
    KOOPCORE_UNROLL
    for (int k = 0; k < kValues; ++k) {
      total_[k].add(sum_[k]);
      sum_[k] = {0.0f, 0.0f};
    }
  }

  __device__ static int slice(int lane) { return kSlices > 1 ? lane / kTiles : 0; }
  __device__ static bool has(int t, int lane) {
    return kSlices > 1 ? lane < kSlices * kTiles : t * 32 + lane < kTiles;
  }
  __device__ static Entry corner(int t, int lane) {
    const int tile = kSlices > 1 ? lane % kTiles : t * 32 + lane;
    int i = 0;
    while ((i + 1) * (i + 2) / 2 <= tile)
      ++i;
    return {4 * i, 4 * (tile - i * (i + 1) / 2)};
  }

  float *scratch_;
  TwoFloat sum_[kValues], total_[kValues];
  int chunks_ = 0;
};

template <class T, int NT> struct SumsOf {
  using Type = TensorSums<T, NT>; // float64 snapshots need fp64 sums on every part
};
#if KOOPCORE_TWO_FLOAT
template <int NT> struct SumsOf<float, NT> {
  using Type = TwoFloatSums<NT>;
};
#endif
template <class T, int NT> using GramSums = typename SumsOf<T, NT>::Type;

// Floats of shared memory that a warp needs for either kind of sums: the host cannot know which
// one the code for its device has.
template <int NT> constexpr int kSumsScratch = TwoFloatSums<NT>::kScratch;

// Calls use(a constant NT) with the number of tiles that n <= kMostWhole snapshots take.
template <class Use> void for_tiles(int n, Use &&use) {
  if (n <= 8)
    use(std::integral_constant<int, 1>{});
  else if (n <= 16)
    use(std::integral_constant<int, 2>{});
  else if (n <= 24)
    use(std::integral_constant<int, 3>{});
  else
    use(std::integral_constant<int, 4>{});
}

// Calls put(entry, value) for the entries of n rows that this lane holds.
template <class Sums, class Put>
__device__ void put_entries(const Sums &sums, int n, int lane, Put &&put) {
  KOOPCORE_UNROLL
  for (int k = 0; k < Sums::kValues; ++k) {
    const Entry at = Sums::place(k, lane);
    if (at.row < n && at.column <= at.row)
      put(at, sums.value[k]);
  }
}

// Adds the warps' sums in their order; the last warp then holds the total. shared: 32 kValues.
template <class Sums>
__device__ void add_warps(Sums &sums, int warp, int warps, int lane, double *shared) {
  for (int w = 0; w < warps; ++w) {
    if (w == warp)
      KOOPCORE_UNROLL
    for (int k = 0; k < Sums::kValues; ++k) {
      if (w > 0)
        sums.value[k] += shared[k * 32 + lane];
      shared[k * 32 + lane] = sums.value[k];
    }
    __syncthreads();
  }
}

} // namespace koopcore::cuda
