// Instruction sets of _cpu: which this processor has, and which is used.
#pragma once

#include <string>
#include <vector>

namespace koopcore::cpu {

// Ordered: each level contains the ones before it.
enum class Isa { portable = 0, avx2 = 1, avx512 = 2 };

const char *isa_name(Isa isa);

// The instruction sets that were compiled in and that this processor can run, slowest first.
std::vector<Isa> supported_isas();

// The fastest supported one, or the one that the environment variable KOOPCORE_ISA names. Throws
// std::invalid_argument for a name that is unknown, or that this processor or build lacks.
Isa chosen_isa();

} // namespace koopcore::cpu
