// Instruction sets of _cpu: which this processor has, and which is used.
#pragma once

#include "cpu/problem.h"

#include <string>
#include <vector>

namespace koopcore::cpu {

// Ordered: each level contains the ones before it.
enum class Isa { portable = 0, avx2 = 1, avx512 = 2 };

const char *isa_name(Isa isa);

// The instruction sets that were compiled in and that this processor can run, slowest first.
std::vector<Isa> supported_isas();

// The one that force_isa named; else the one that the environment variable KOOPCORE_ISA names; else
// the fastest supported one. Throws std::invalid_argument for a name that is unknown, or that this
// processor or build lacks.
Isa chosen_isa();

// Uses this instruction set from now on; an empty name returns to the environment's choice.
void force_isa(const std::string &name);

// The kernels of chosen_isa().
const Kernels &chosen_kernels();

} // namespace koopcore::cpu
