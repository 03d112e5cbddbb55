// Multi-tensor copies between parameters and a row of the ring, converting on the way.
//
// cpu/ has no counterpart: there the ring is written by torch or NumPy.
#include "cuda/numbers.h"
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

} // namespace

int code_of_device() {
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void *>(copy_blocks)),
        "looking for this device's code");
  return attributes.ptxVersion; // of machine code too: what it was made from
}

void copy_tensors(const Tensors &tensors, char *row, Kind kind, bool into_row, Stream stream) {
  if (tensors.blocks > 0)
    launch("copying tensors", copy_blocks, blocks_for(tensors.blocks), kThreads, 0, stream, tensors,
           row, kind, into_row);
}

} // namespace koopcore::cuda
