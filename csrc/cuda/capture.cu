// Multi-tensor copies between parameters and a row of the ring, converting on the way; values by
// group.
#include "cuda/numbers.h"
#include "cuda/rows.h"
#include "cuda/stages.h"

namespace koopcore::cuda {
namespace {

constexpr int kThreads = 256;

// A block copies kTensorBlock numbers of one tensor: floats to floats by sixteen bytes a thread
// where both sides allow it.
__global__ void __launch_bounds__(kThreads, 4)
    copy_blocks(Tensors tensors, char *row, Kind row_kind, bool into_row) {
  for (std::int64_t block = blockIdx.x; block < tensors.blocks; block += gridDim.x) {
    std::int64_t low = 0, high = tensors.count; // the last tensor whose first block is not behind
    while (high - low > 1) {
      const std::int64_t middle = (low + high) / 2;
      (tensors.block[middle] <= block ? low : high) = middle;
    }
    const Kind kind = Kind(tensors.kind[low]);
    const std::int64_t from = (block - tensors.block[low]) * kTensorBlock;
    const std::int64_t rest = tensors.length[low] - from;
    const int count = int(rest < kTensorBlock ? rest : kTensorBlock);
    char *tensor = tensors.data[low] + from * bytes_of(kind);
    char *place = row + (tensors.start[low] + from) * bytes_of(row_kind);
    const auto together =
        reinterpret_cast<std::uintptr_t>(tensor) | reinterpret_cast<std::uintptr_t>(place);
    int done = 0;
    if (kind == kFloat32 && row_kind == kFloat32 && together % 16 == 0) {
      const float4 *source = reinterpret_cast<const float4 *>(into_row ? tensor : place);
      float4 *target = reinterpret_cast<float4 *>(into_row ? place : tensor);
#pragma unroll
      for (int k = 0; k < kTensorBlock / 4 / kThreads; ++k) {
        const int i = k * kThreads + int(threadIdx.x);
        if (i < count / 4)
          target[i] = source[i];
      }
      done = count / 4 * 4;
    }
    for (int i = done + int(threadIdx.x); i < count; i += kThreads)
      if (into_row)
        write_number(place + i * bytes_of(row_kind), row_kind,
                     read_number(tensor + i * bytes_of(kind), kind));
      else
        write_number(tensor + i * bytes_of(kind), kind,
                     clamp_to(kind, read_number(place + i * bytes_of(row_kind), row_kind)));
  }
}

// Calls take(i, column) for every parameter of the group, i counting them; a warp shares them.
template <class Take>
__device__ void each_parameter(const Groups &groups, std::int64_t group, int lane, Take &&take) {
  std::int64_t i = 0;
  for (std::int64_t s = groups.ptr[group]; s < groups.ptr[group + 1]; ++s) {
    for (std::int64_t k = lane; k < groups.length[s]; k += 32)
      take(i + k, groups.start[s] + k * groups.stride[s]);
    i += groups.length[s];
  }
}

__global__ void __launch_bounds__(kThreads, 4)
    gather_groups(Window window, Groups groups, int m, double *out) {
  const Kind kind = window.is_double ? kFloat64 : kFloat32;
  const std::int64_t step = std::int64_t(gridDim.x) * (kThreads / 32);
  for (std::int64_t g = std::int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
       g < groups.count; g += step)
    each_parameter(groups, g, threadIdx.x & 31, [&](std::int64_t i, std::int64_t column) {
      for (int r = 0; r < window.n; ++r)
        out[(r * groups.count + g) * m + i] =
            read_number(window.at(r) + column * window.step, kind);
    });
}

__global__ void __launch_bounds__(kThreads, 4)
    scatter_groups(Groups groups, int m, const double *values, int n_rows, Output out) {
  const std::int64_t step = std::int64_t(gridDim.x) * (kThreads / 32);
  for (std::int64_t g = std::int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
       g < groups.count; g += step)
    each_parameter(groups, g, threadIdx.x & 31, [&](std::int64_t i, std::int64_t column) {
      for (int r = 0; r < n_rows; ++r)
        write_number(out.data + r * out.row + column * out.step, out.kind,
                     clamp_to(out.kind, values[(r * groups.count + g) * m + i]));
    });
}

} // namespace

void check_code() {
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void *>(copy_blocks)),
        "looking for this device's code");
}

void copy_tensors(const Tensors &tensors, char *row, Kind kind, bool into_row, Stream stream) {
  if (tensors.blocks > 0)
    launch("copying tensors", copy_blocks, blocks_for(tensors.blocks), kThreads, 0, stream, tensors,
           row, kind, into_row);
}

void gather(const Window &window, const Groups &groups, int m, double *out, Stream stream) {
  launch("gathering values by group", gather_groups,
         blocks_for((groups.count + kThreads / 32 - 1) / (kThreads / 32)), kThreads, 0, stream,
         window, groups, m, out);
}

void scatter(const Groups &groups, int m, const double *values, int n_rows, const Output &out,
             Stream stream) {
  launch("scattering values by group", scatter_groups,
         blocks_for((groups.count + kThreads / 32 - 1) / (kThreads / 32)), kThreads, 0, stream,
         groups, m, values, n_rows, out);
}

} // namespace koopcore::cuda
