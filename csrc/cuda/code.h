// What the code that runs on a device was compiled for, which need not be what the device is.
//
// A GPU runs machine code of an earlier minor version of its own generation, and what its driver
// makes of PTX of any earlier one. Kernels are written by the architecture they are compiled for
// (__CUDA_ARCH__), so whoever launches them has to ask for that too: Device::code, never the
// device's own compute capability.
#pragma once

namespace koopcore::cuda {

// fp64 runs at full or half the rate of fp32 on the data-centre parts (A100, H100/H200, B200), and
// at a 32nd or less on the others, B300 among them, which sum in pairs of floats instead.
// code: 90 for compute capability 9.0.
constexpr bool fast_double(int code) { return code == 80 || code == 90 || code == 100; }

// The same where kernels are compiled; the host emulation of the tests sets this.
#ifndef KOOPCORE_TWO_FLOAT
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 800 && __CUDA_ARCH__ != 900 && __CUDA_ARCH__ != 1000
#define KOOPCORE_TWO_FLOAT 1
#else
#define KOOPCORE_TWO_FLOAT 0
#endif
#endif
#if defined(__CUDA_ARCH__)
static_assert(fast_double(__CUDA_ARCH__ / 10) == !KOOPCORE_TWO_FLOAT, "both speak of one list");
#endif

} // namespace koopcore::cuda
