// CUDA on the host, for tests: every thread of a block is a fiber, blocks run one after another.
//
// It stands in for the CUDA header of the same name, so that g++ compiles the kernels of csrc/cuda
// as they are. Fibers run until they meet a barrier or a warp-wide operation. The order in which
// they are taken is forwards or backwards (emulation::backwards): a missing barrier then changes
// results. Device memory is host memory.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <strings.h>
#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

#define KOOPCORE_EMULATED 1
#ifndef KOOPCORE_EMULATED_CODE // what the kernels were compiled for
#define KOOPCORE_EMULATED_CODE 90
#endif
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static
#define __align__(x) alignas(x)
#define KOOPCORE_SHARED(name) unsigned char *name = emulation::shared_memory()

struct dim3 {
  unsigned int x, y, z;
  dim3(unsigned int x_ = 1, unsigned int y_ = 1, unsigned int z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint3 {
  unsigned int x, y, z;
};
struct float4 {
  float x, y, z, w;
};
struct double2 {
  double x, y;
};
template <class T> T __ldg(const T *p) { return *p; }

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace emulation {

inline bool backwards = std::getenv("KOOPCORE_EMULATION_BACKWARDS") != nullptr;
// What the device calls itself, which need not be what the kernels were compiled for.
inline const char *called = std::getenv("KOOPCORE_EMULATED_ARCHITECTURE");
inline int architecture = called != nullptr ? std::atoi(called) : KOOPCORE_EMULATED_CODE;
// What the runtime says that they were compiled for: the same, unless a test wants it to lie.
inline const char *said = std::getenv("KOOPCORE_EMULATED_SAYS");
inline int code = said != nullptr ? std::atoi(said) : KOOPCORE_EMULATED_CODE;
// A driver from before CUDA 12.8 has no cudaStreamGetDevice.
inline bool old_driver = std::getenv("KOOPCORE_EMULATED_OLD_DRIVER") != nullptr;

// What the runtime was asked for; see `Runtime` of tests/emulated_cuda.py.
struct Calls {
  std::int64_t launches, blocks, attributes, stream_queries;
};
inline Calls calls = {};
inline bool idle = false;    // count launches and run nothing: what is left is the host's own cost
inline bool trapped = false; // a kernel has ended in __trap
constexpr std::size_t kStack = 256 * 1024;

#if defined(__x86_64__)
// Saves the registers that a call must keep, and goes on where `to` was saved: ucontext asks the
// kernel for the signal mask each time, which is a hundred times slower.
struct Context {
  void *stack_pointer;
};
__attribute__((naked, noinline)) static void switch_to(Context * /*from*/, Context * /*to*/) {
  asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
      "movq %rsp, (%rdi)\n"
      "movq (%rsi), %rsp\n"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp\n"
      "ret");
}
inline void start(Context &context, char *stack, std::size_t size, void (*entry)()) {
  auto top = reinterpret_cast<std::uintptr_t>(stack + size) & ~std::uintptr_t(15);
  void **frame = reinterpret_cast<void **>(top) - 8; // six registers, where to go, alignment
  std::memset(frame, 0, 8 * sizeof(void *));
  frame[6] = reinterpret_cast<void *>(entry);
  context.stack_pointer = frame;
}
#else
using Context = ucontext_t;
inline void switch_to(Context *from, Context *to) { swapcontext(from, to); }
inline void start(Context &context, char *stack, std::size_t size, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = size;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
#endif

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack;
  bool done = false, at_block = false, at_warp = false;
};

struct Block {
  std::vector<Fiber> fibers;
  Context scheduler;
  std::function<void()> body;
  unsigned int current = 0;
  std::vector<unsigned char> shared;
  std::uint64_t exchange[64][32]; // per warp: what lanes show each other
  double exchange_b[64][32];
};
inline Block block;

inline unsigned char *shared_memory() {
  auto at = reinterpret_cast<std::uintptr_t>(block.shared.data());
  return reinterpret_cast<unsigned char *>((at + 15) / 16 * 16);
}

inline void yield() {
  Fiber &fiber = block.fibers[block.current];
  switch_to(&fiber.context, &block.scheduler);
}
inline void warp_barrier() {
  block.fibers[block.current].at_warp = true;
  yield();
}
inline void block_barrier() {
  block.fibers[block.current].at_block = true;
  yield();
}
inline void run_fiber() {
  block.body();
  block.fibers[block.current].done = true;
  yield();
}

inline void trap() { // the thread never goes on, and the launch fails
  trapped = true;
  Fiber &fiber = block.fibers[block.current];
  fiber.done = true;
  for (;;)
    yield();
}

inline void resume(unsigned int thread) {
  block.current = thread;
  threadIdx = {thread, 0, 0};
  switch_to(&block.scheduler, &block.fibers[thread].context);
}

// Runs all fibers to the end: a warp goes on when all of its fibers wait, a block likewise.
inline void run_block() {
  const unsigned int count = static_cast<unsigned int>(block.fibers.size());
  for (;;) {
    bool any = false, alive = false;
    for (unsigned int i = 0; i < count; ++i) {
      const unsigned int t = backwards ? count - 1 - i : i;
      Fiber &fiber = block.fibers[t];
      if (fiber.done || fiber.at_block || fiber.at_warp)
        continue;
      resume(t);
      any = true;
    }
    for (unsigned int warp = 0; warp * 32 < count; ++warp) {
      unsigned int waiting = 0, running = 0;
      const unsigned int end = warp * 32 + 32 < count ? warp * 32 + 32 : count;
      for (unsigned int t = warp * 32; t < end; ++t) {
        running += !block.fibers[t].done;
        waiting += block.fibers[t].at_warp;
      }
      if (waiting > 0 && waiting == running) {
        for (unsigned int t = warp * 32; t < end; ++t)
          block.fibers[t].at_warp = false;
        any = true;
      }
    }
    unsigned int at_block = 0, left = 0;
    for (Fiber &fiber : block.fibers) {
      left += !fiber.done;
      at_block += fiber.at_block;
      alive |= !fiber.done;
    }
    if (!alive)
      return;
    if (at_block > 0 && at_block == left) {
      for (Fiber &fiber : block.fibers)
        fiber.at_block = false;
      any = true;
    }
    if (!any)
      throw std::logic_error("threads of a block wait for each other at different barriers");
  }
}

inline void run_grid(dim3 grid, dim3 threads, std::size_t shared, const std::function<void()> &of) {
  gridDim = grid;
  blockDim = threads;
  if (block.fibers.size() < threads.x)
    block.fibers.resize(threads.x);
  block.fibers.resize(threads.x);
  block.body = of;
  for (unsigned int b = 0; b < grid.x; ++b) {
    blockIdx = {b, 0, 0};
    block.shared.assign(shared + 16, 0xff); // NaN: reading what was not written shows
    for (Fiber &fiber : block.fibers) {
      if (!fiber.stack)
        fiber.stack.reset(new char[kStack]);
      start(fiber.context, fiber.stack.get(), kStack, run_fiber);
      fiber.done = fiber.at_block = fiber.at_warp = false;
    }
    run_block();
  }
}

// Every lane shows `value` and reads what lane `from` shows; lanes that have ended show nothing.
template <class T> T exchange(T value, int from) {
  const unsigned int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  static_assert(sizeof(T) <= 8, "a lane shows eight bytes");
  std::memcpy(&block.exchange[warp][lane], &value, sizeof value);
  warp_barrier();
  T out;
  std::memcpy(&out, &block.exchange[warp][from & 31], sizeof out);
  warp_barrier();
  return out;
}

inline void multiply_add_8x4x8(double a, double b, double &c0, double &c1) {
  const unsigned int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  std::memcpy(&block.exchange[warp][lane], &a, sizeof a);
  block.exchange_b[warp][lane] = b;
  warp_barrier();
  for (int q = 0; q < 4; ++q) { // A[lane/4][q] is in lane 4 (lane/4) + q, B[q][s] in lane 4 s + q
    double x;
    std::memcpy(&x, &block.exchange[warp][lane / 4 * 4 + q], sizeof x);
    c0 = std::fma(x, block.exchange_b[warp][4 * (2 * (lane % 4)) + q], c0);
    c1 = std::fma(x, block.exchange_b[warp][4 * (2 * (lane % 4) + 1) + q], c1);
  }
  warp_barrier();
}

} // namespace emulation

inline void __trap() { emulation::trap(); }
inline void __syncthreads() { emulation::block_barrier(); }
inline void __syncwarp(unsigned int = 0) { emulation::warp_barrier(); }
template <class T> T __shfl_sync(unsigned int, T value, int lane) {
  return emulation::exchange(value, lane);
}
template <class T> T __shfl_up_sync(unsigned int, T value, unsigned int delta) {
  const int lane = int(threadIdx.x % 32);
  const T got = emulation::exchange(value, lane - int(delta));
  return lane < int(delta) ? value : got;
}
template <class T> T __shfl_down_sync(unsigned int, T value, unsigned int delta) {
  const int lane = int(threadIdx.x % 32);
  const T got = emulation::exchange(value, lane + int(delta));
  return lane + int(delta) > 31 ? value : got;
}
template <class T> T __shfl_xor_sync(unsigned int, T value, int mask) {
  return emulation::exchange(value, int(threadIdx.x % 32) ^ mask);
}
inline unsigned int __ballot_sync(unsigned int, bool value) {
  unsigned int all = 0;
  for (int lane = 0; lane < 32; ++lane)
    all |= unsigned(emulation::exchange(int(value), lane)) << lane;
  return all;
}
inline bool __any_sync(unsigned int mask, bool value) { return __ballot_sync(mask, value) != 0; }
inline bool __all_sync(unsigned int mask, bool value) { return __ballot_sync(mask, value) == ~0u; }
inline int __ffs(int bits) { return ffs(bits); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }

// ------------------------------------------------------------------------------ the runtime's API
using cudaError_t = int;
using cudaStream_t = struct CUstream_st *;
constexpr cudaError_t cudaSuccess = 0, cudaErrorCallRequiresNewerDriver = 36;
constexpr cudaError_t cudaErrorNoKernelImageForDevice = 209, cudaErrorLaunchFailure = 719;
constexpr cudaError_t cudaErrorNotSupported = 801;
constexpr int cudaFuncAttributeMaxDynamicSharedMemorySize = 8;
constexpr int cudaFuncAttributePreferredSharedMemoryCarveout = 9;
constexpr int cudaDevAttrMaxSharedMemoryPerBlockOptin = 97, cudaDevAttrMultiProcessorCount = 16;
constexpr int cudaDevAttrComputeCapabilityMajor = 75, cudaDevAttrComputeCapabilityMinor = 76;
#define CUDART_VERSION 13000
#define cudaStreamPerThread (reinterpret_cast<cudaStream_t>(2))

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
};
struct cudaFuncAttributes {
  int binaryVersion, ptxVersion;
};
struct cudaDeviceProp {
  char name[256];
};
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char *cudaGetErrorString(cudaError_t) { return "an emulated error"; }
inline cudaError_t cudaGetDevice(int *device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return device == 0 ? 0 : 101; }
inline cudaError_t cudaGetDeviceCount(int *count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaStreamGetDevice(cudaStream_t stream, int *device) {
  ++emulation::calls.stream_queries;
  if (emulation::old_driver)
    return cudaErrorCallRequiresNewerDriver;
  return *device = stream == reinterpret_cast<cudaStream_t>(0x100) ? 1 : 0, cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void *, int, int) {
  return ++emulation::calls.attributes, cudaSuccess;
}
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, const void *) {
  a->binaryVersion = emulation::architecture;
  return a->ptxVersion = emulation::code, cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int *value, int attribute, int) {
  *value = attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? 232448
           : attribute == cudaDevAttrMultiProcessorCount        ? 4
           : attribute == cudaDevAttrComputeCapabilityMajor
               ? emulation::architecture / 10
               : emulation::architecture % 10;
  return cudaSuccess;
}
inline cudaError_t cudaDriverGetVersion(int *version) { return *version = 13000, cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int *version) { return *version = 13000, cudaSuccess; }

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(P...), A... args) {
  ++emulation::calls.launches;
  emulation::calls.blocks += config->gridDim.x;
  if (emulation::idle)
    return cudaSuccess;
  emulation::run_grid(config->gridDim, config->blockDim, config->dynamicSmemBytes,
                      [&] { kernel(P(args)...); });
  const bool failed = emulation::trapped;
  emulation::trapped = false;
  return failed ? cudaErrorLaunchFailure : cudaSuccess;
}

extern "C" {
__attribute__((used, visibility("default"))) inline emulation::Calls *koopcore_emulated_calls() {
  return &emulation::calls;
}
__attribute__((used, visibility("default"))) inline void koopcore_emulated_idle(int idle) {
  emulation::idle = idle != 0;
}
}
