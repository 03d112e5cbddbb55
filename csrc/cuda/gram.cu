// Gram matrices G = BᵀB of the difference basis B = [x_1, d_1, …, d_{n-1}]: one read of the
// snapshots.
//
// Mirrors cpu/gram.cpp. Small groups take a warp each, middle ones a block whose warps share the
// chunks, large ones several blocks whose sums are added in a fixed order. Results depend on the
// plan alone, not on the device's size or on what else runs.
#include "cuda/stages.h"
#include "cuda/sums.h"

namespace koopcore::cuda {
namespace {

constexpr int kWarps = 8;      // of a block that takes small groups
constexpr int kPieceWarps = 4; // of a block that takes a piece
constexpr int kWideRows = 32;  // snapshots of a block of a wide Gram matrix

// Blocks for pieces that shall fit a multiprocessor: left to itself, ptxas spills to fit one more.
constexpr int resident_blocks(int NT) { return NT <= 2 ? 4 : NT == 3 ? 3 : 2; }

// All chunks of `chunks`, the next one being loaded while one is summed.
template <class T, int NT, class Sums>
__device__ void sum_chunks(const LaneRows<T, NT> &rows, Chunks &chunks, int lane, Sums &sums) {
  Chunk at;
  Quad<T> x[NT], unused;
  bool more = chunks.next(at);
  if (more)
    rows.load(at, lane, x, unused);
  while (more) {
    Quad<T> current[NT];
    KOOPCORE_UNROLL
    for (int i = 0; i < NT; ++i)
      current[i] = x[i];
    more = chunks.next(at);
    if (more)
      rows.load(at, lane, x, unused);
    sums.add(current, lane);
  }
}

template <class T, int NT>
__global__ void __launch_bounds__(32 * kWarps)
    gram_small(Window window, Groups groups, Plan plan, GramLayout out) {
  KOOPCORE_SHARED(shared);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  float *scratch = reinterpret_cast<float *>(shared) + warp * kSumsScratch<NT>;
  const LaneRows<T, NT> rows(window, 0, lane);
  const std::int64_t step = std::int64_t(gridDim.x) * kWarps;
  for (std::int64_t i = std::int64_t(blockIdx.x) * kWarps + warp; i < plan.n_small; i += step) {
    const std::int64_t group = plan.small == nullptr ? i : plan.small[i];
    GramSums<T, NT> sums(scratch);
    Chunks chunks(groups, groups.ptr[group], groups.ptr[group + 1], 0, INT64_MAX, 0, 1);
    sum_chunks<T, NT>(rows, chunks, lane, sums);
    sums.finish(lane);
    double *to = out.group(group);
    put_entries(sums, window.n, lane, [&](const Entry &at, double x) {
      to[packed_index(at.row, at.column) * out.entry] = x;
    });
  }
}

// Where piece p goes: its group's matrix, or its own row of partial sums.
__device__ double *piece_target(const Plan &plan, std::int64_t p, const GramLayout &out,
                                double *partials, int entries, std::int64_t &apart) {
  const bool whole = p < plan.n_middle;
  apart = whole ? out.entry : 1;
  return whole ? out.group(plan.pieces[p].group) : partials + (p - plan.n_middle) * entries;
}

template <class T, int NT>
__global__ void __launch_bounds__(32 * kPieceWarps, resident_blocks(NT))
    gram_pieces(Window window, Groups groups, Plan plan, GramLayout out, double *partials) {
  KOOPCORE_SHARED(shared);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  float *scratch = reinterpret_cast<float *>(shared) + warp * kSumsScratch<NT>;
  const LaneRows<T, NT> rows(window, 0, lane);
  for (std::int64_t p = blockIdx.x; p < plan.n_pieces; p += gridDim.x) {
    const Piece piece = plan.pieces[p];
    GramSums<T, NT> sums(scratch);
    Chunks chunks(groups, piece.segment, groups.ptr[piece.group + 1], piece.within, piece.count,
                  warp, kPieceWarps);
    sum_chunks<T, NT>(rows, chunks, lane, sums);
    sums.finish(lane);
    __syncthreads(); // the scratch of other warps lies where the sums go
    add_warps(sums, warp, kPieceWarps, lane, reinterpret_cast<double *>(shared));
    if (warp != kPieceWarps - 1)
      continue;
    std::int64_t apart;
    double *to = piece_target(plan, p, out, partials, packed_size(window.n), apart);
    put_entries(sums, window.n, lane, [&](const Entry &at, double x) {
      to[packed_index(at.row, at.column) * apart] = x;
    });
  }
}

// A block of 32 × 32 entries of a Gram matrix too large for one warp.
struct WideSums {
  static constexpr int kTiles = kWideRows / 8;
  static constexpr int kValues = 2 * kTiles * kTiles;
  double value[kValues];
};

template <class T> struct WideRows {
  static constexpr int NT = kWideRows / 8;
  const LaneRows<T, NT> rows;

  __device__ WideRows(const Window &window, int block, int lane)
      : rows(window, block * kWideRows, lane) {}

  // d[s][i]: differences of the chunk's parameters s.
  __device__ void differences(const Chunk &at, int lane, double (&d)[4][NT]) const {
    Quad<T> x[NT], above = {};
    rows.load(at, lane, x, above);
    KOOPCORE_UNROLL
    for (int s = 0; s < 4; ++s) {
      double v[NT];
      KOOPCORE_UNROLL
      for (int i = 0; i < NT; ++i)
        v[i] = double(x[i].value[s]);
      take_differences<double, NT>(v, double(above.value[s]), lane, d[s]);
    }
  }
};

template <class T>
__global__ void __launch_bounds__(32 * kPieceWarps)
    gram_wide(Window window, Groups groups, Plan plan, GramLayout out, double *partials) {
  constexpr int NT = kWideRows / 8;
  KOOPCORE_SHARED(shared);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const int blocks = (window.n + kWideRows - 1) / kWideRows;
  const int pairs = packed_size(blocks);
  for (std::int64_t item = blockIdx.x; item < plan.n_pieces * pairs; item += gridDim.x) {
    const std::int64_t p = item / pairs;
    int upper = 0;
    while (packed_size(upper + 1) <= int(item % pairs))
      ++upper;
    const int left = int(item % pairs) - packed_size(upper);
    const Piece piece = plan.pieces[p];
    const WideRows<T> a(window, upper, lane), b(window, left, lane);
    Chunks chunks(groups, piece.segment, groups.ptr[piece.group + 1], piece.within, piece.count,
                  warp, kPieceWarps);
    WideSums sums = {};
    for (Chunk at; chunks.next(at);) {
      double da[4][NT], db[4][NT];
      a.differences(at, lane, da);
      b.differences(at, lane, db);
      KOOPCORE_UNROLL
      for (int s = 0; s < 4; ++s)
        KOOPCORE_UNROLL
      for (int i = 0; i < NT; ++i)
        KOOPCORE_UNROLL
      for (int j = 0; j < NT; ++j)
        multiply_add_8x4x8(da[s][i], db[s][j], sums.value[2 * (i * NT + j)],
                           sums.value[2 * (i * NT + j) + 1]);
    }
    add_warps(sums, warp, kPieceWarps, lane, reinterpret_cast<double *>(shared));
    if (warp == kPieceWarps - 1) {
      std::int64_t apart;
      double *to = piece_target(plan, p, out, partials, packed_size(window.n), apart);
      KOOPCORE_UNROLL
      for (int k = 0; k < WideSums::kValues; ++k) {
        const int row = upper * kWideRows + 8 * (k / 2 / NT) + lane / 4;
        const int column = left * kWideRows + 8 * (k / 2 % NT) + 2 * (lane & 3) + (k & 1);
        if (row < window.n && column <= row)
          to[packed_index(row, column) * apart] = sums.value[k];
      }
    }
    __syncthreads();
  }
}

// Sums of the pieces of large groups: 32 entries a block, 8 threads an entry, each adding every
// eighth piece; the eight are then added in order.
__global__ void __launch_bounds__(256)
    gram_sum_pieces(Plan plan, int entries, const double *partials, GramLayout out) {
  __shared__ double sums[8][32];
  const int lane = threadIdx.x & 31, share = threadIdx.x / 32;
  const int across = (entries + 31) / 32;
  for (std::int64_t item = blockIdx.x; item < plan.n_large * across; item += gridDim.x) {
    const std::int64_t large = item / across;
    const int e = int(item % across) * 32 + lane;
    double sum = 0.0;
    if (e < entries)
      for (std::int64_t p = plan.large_piece[large] + share; p < plan.large_piece[large + 1];
           p += 8)
        sum += partials[p * entries + e];
    sums[share][lane] = sum;
    __syncthreads();
    if (share == 0 && e < entries) {
      for (int s = 1; s < 8; ++s)
        sum += sums[s][lane];
      out.group(plan.large_group[large])[e * out.entry] = sum;
    }
    __syncthreads();
  }
}

template <class T, int NT>
void launch_whole(const Window &window, const Groups &groups, const Plan &plan,
                  const GramLayout &out, double *partials, Stream stream) {
  constexpr std::size_t scratch = sizeof(float) * kSumsScratch<NT>;
  if (plan.n_small > 0)
    launch("gram of small groups", gram_small<T, NT>,
           blocks_for((plan.n_small + kWarps - 1) / kWarps), 32 * kWarps, kWarps * scratch, stream,
           window, groups, plan, out);
  if (plan.n_pieces == 0)
    return;
  // As many values as either kind of sums holds.
  constexpr int most = TensorSums<T, NT>::kValues > TwoFloatSums<NT>::kValues
                           ? TensorSums<T, NT>::kValues
                           : TwoFloatSums<NT>::kValues;
  constexpr std::size_t sums = sizeof(double) * 32 * most;
  launch("gram of large groups", gram_pieces<T, NT>, blocks_for(plan.n_pieces), 32 * kPieceWarps,
         sums > kPieceWarps * scratch ? sums : kPieceWarps * scratch, stream, window, groups, plan,
         out, partials);
}

template <class T>
void launch_gram(const Window &window, const Groups &groups, const Plan &plan,
                 const GramLayout &out, double *partials, bool wide, Stream stream) {
  const int n = window.n;
  if (!wide) {
    for_tiles(n, [&](auto tiles) {
      launch_whole<T, tiles()>(window, groups, plan, out, partials, stream);
    });
  } else {
    const std::int64_t blocks = (n + kWideRows - 1) / kWideRows;
    launch("gram of long windows", gram_wide<T>,
           blocks_for(plan.n_pieces * (blocks * (blocks + 1) / 2)), 32 * kPieceWarps,
           sizeof(double) * 32 * WideSums::kValues, stream, window, groups, plan, out, partials);
  }
}

} // namespace

std::int64_t gram_space(const Plan &plan, int n) {
  return (plan.n_pieces - plan.n_middle) * packed_size(n);
}

void gram(const Window &window, const Groups &groups, const Plan &plan, const GramLayout &out,
          double *partials, bool wide, Stream stream) {
  if (window.is_double)
    launch_gram<double>(window, groups, plan, out, partials, wide, stream);
  else
    launch_gram<float>(window, groups, plan, out, partials, wide, stream);
  const int entries = packed_size(window.n);
  if (plan.n_large > 0)
    launch("adding up large groups", gram_sum_pieces,
           blocks_for(plan.n_large * ((entries + 31) / 32)), 256, 0, stream, plan, entries,
           static_cast<const double *>(partials), out);
}

} // namespace koopcore::cuda
