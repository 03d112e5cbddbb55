// The kernels of an instruction set and the table of them, as kernels.def lists them.
#pragma once

#include "cpu/problem.h"

namespace koopcore::cpu {

// A job on many groups that need nothing of one another: `run` does the groups first … first +
// count - 1, W at most, with as many doubles of scratch as `scratch` says.
template <class Job> struct Batch {
  std::size_t (*scratch)(const Job &job);
  void (*run)(const Job &job, std::int64_t first, int count, double *scratch);
};

// The kernels of one instruction set. Each works in the calling thread.
struct Kernels {
  int lanes; // W: groups of a batch, at most
#define KERNEL(result, name, parameters) result(*name) parameters;
#define BATCH(name, Job) Batch<Job> name;
#include "cpu/kernels.def"
};

} // namespace koopcore::cpu

#ifdef KOOPCORE_ISA // in files that are compiled once per instruction set
namespace koopcore::cpu::KOOPCORE_ISA {

#define KERNEL(result, name, parameters) result name parameters;
#define BATCH(name, Job)                                                                           \
  std::size_t name##_scratch(const Job &job);                                                      \
  void name##_batch(const Job &job, std::int64_t first, int count, double *scratch);
#include "cpu/kernels.def"

extern const Kernels kernels;

} // namespace koopcore::cpu::KOOPCORE_ISA
#endif
