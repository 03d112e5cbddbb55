// Instruction sets of _cpu: which this processor has, and which is used.
//
// The counterpart of cuda/device.h.
#pragma once

#include "cpu/kernels.h"

#include <string>
#include <vector>

namespace koopcore::cpu {

// An instruction set that was compiled in.
struct Isa {
  const char *name;
  const Kernels *kernels;
  bool (*runs_here)(); // whether this processor has it
};

// Those that this processor can run, slowest first: each contains the ones before it.
std::vector<const Isa *> supported_isas();

// The one that force_isa named; else the one that the environment variable KOOPCORE_ISA names; else
// the fastest supported one. Throws std::invalid_argument for a name that is unknown, or that this
// processor or build lacks.
const Isa &current_isa();

// Uses this instruction set from now on; an empty name returns to the environment's choice.
void force_isa(const std::string &name);

} // namespace koopcore::cpu
