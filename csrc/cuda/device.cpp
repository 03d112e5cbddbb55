// What can be asked of a device without touching it, and the checks that precede every launch.
#include "cuda/device.h"

#include "cuda/code.h"
#include "cuda/launch.h"

#include <map>
#include <mutex>

namespace koopcore::cuda {

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess)
    return count;
  cudaGetLastError();
  return 0;
}

std::string device_problem() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess)
    return count > 0 ? "" : "the CUDA driver reports no device";
  cudaGetLastError();
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (driver == 0)
    return "no CUDA driver was found on this machine";
  return std::string(cudaGetErrorString(error)) + " (the driver supports CUDA " +
         std::to_string(driver / 1000) + "." + std::to_string(driver % 1000 / 10) +
         ", this module was built with CUDA " + std::to_string(runtime / 1000) + "." +
         std::to_string(runtime % 1000 / 10) + ")";
}

namespace {

Device ask(int number) {
  Device device{number, 0, 0, code_of_device(), 0};
  int shared = 0, major = 0, minor = 0;
  check(cudaDeviceGetAttribute(&device.processors, cudaDevAttrMultiProcessorCount, number),
        "asking for the number of multiprocessors");
  check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, number),
        "asking for the shared memory of a block");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, number),
        "asking for the compute capability");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, number),
        "asking for the compute capability");
  device.architecture = 10 * major + minor;
  device.shared_memory = std::size_t(shared);
  return device;
}

} // namespace

const Device &device_of(int number) {
  static std::mutex lock;
  static std::map<int, Device> known;
  const std::lock_guard<std::mutex> guard(lock);
  const auto device = known.find(number);
  if (device != known.end())
    return device->second;
  const DeviceScope scope(number);
  return known.emplace(number, ask(number)).first->second;
}

void check_stream(int device, Stream stream) {
#if CUDART_VERSION >= 12080
  if (reinterpret_cast<std::uintptr_t>(stream) <= 2) // the default streams are of every device
    return;
  int owner = device;
  const cudaError_t error = cudaStreamGetDevice(stream, &owner);
  if (error == cudaErrorCallRequiresNewerDriver || error == cudaErrorNotSupported) {
    cudaGetLastError(); // a driver from before CUDA 12.8 cannot say: the caller is believed
    return;
  }
  check(error, "asking for the stream's device");
  if (owner != device)
    throw std::invalid_argument("the stream is of device " + std::to_string(owner) +
                                ", the arrays are on device " + std::to_string(device) +
                                "; use a stream of the arrays' device");
#else
  static_cast<void>(device);
  static_cast<void>(stream);
#endif
}

double gram_noise(const Device &device, int n, bool is_double) {
  // Pairs of floats leave 1.4e-14 where fp64 sums leave 1.1e-16.
  return is_double || n > kMostWhole || fast_double(device.code) ? 1.0 : 128.0;
}

} // namespace koopcore::cuda
