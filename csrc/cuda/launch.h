// Launching kernels: errors become exceptions here, and none is left behind for the next call.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace koopcore::cuda {

using Stream = cudaStream_t;

// Throws std::runtime_error, after taking the error out of the runtime.
inline void check(cudaError_t error, const char *what) {
  if (error == cudaSuccess)
    return;
  cudaGetLastError();
  std::string text = std::string(what) + ": " + cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice)
    text += "; this module has no code for this GPU: build koopcore with CUDAARCHS set to its "
            "compute capability (see docs/building.md)";
  throw std::runtime_error(text);
}

// Blocks that a grid of independent items needs; grids beyond 2^31 - 1 blocks do not exist, so
// kernels walk over items with a stride.
inline unsigned int blocks_for(std::int64_t items, std::int64_t most = 1 << 20) {
  return static_cast<unsigned int>(items < most ? (items > 0 ? items : 1) : most);
}

template <class... Parameters, class... Arguments>
void launch(const char *name, void (*kernel)(Parameters...), unsigned int blocks,
            unsigned int threads, std::size_t shared, Stream stream, Arguments... arguments) {
  if (shared > 48 * 1024) // more than this has to be asked for
    check(cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)),
          name);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), name);
}

// Makes `device` current until the end of the scope.
class DeviceScope {
public:
  explicit DeviceScope(int device) {
    check(cudaGetDevice(&before_), "asking for the current device");
    if (device != before_)
      check(cudaSetDevice(device), "making the arrays' device current");
    changed_ = device != before_;
  }
  ~DeviceScope() {
    if (changed_)
      cudaSetDevice(before_);
  }
  DeviceScope(const DeviceScope &) = delete;
  DeviceScope &operator=(const DeviceScope &) = delete;

private:
  int before_ = 0;
  bool changed_ = false;
};

} // namespace koopcore::cuda
