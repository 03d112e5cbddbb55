// The table of kernels of one instruction set; compiled once per instruction set.
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace koopcore::cpu::KOOPCORE_ISA {

const Kernels kernels = {
    kLanes,
#define KERNEL(result, name, parameters) name,
#define BATCH(name, Job) {name##_scratch, name##_batch},
#include "cpu/kernels.def"
};

} // namespace koopcore::cpu::KOOPCORE_ISA
