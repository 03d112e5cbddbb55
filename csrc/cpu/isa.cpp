// Instruction sets of _cpu: which this processor has, and which is used.
#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace koopcore::cpu {

namespace portable {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}

namespace {

// Slowest first. __builtin_cpu_supports also asks whether the operating system saves the wide
// registers.
const Isa kIsas[] = {
    {"portable", &portable::kernels, [] { return true; }},
#ifdef KOOPCORE_HAVE_AVX2
    {"avx2", &avx2::kernels,
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
#ifdef KOOPCORE_HAVE_AVX512
    {"avx512", &avx512::kernels,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("fma");
     }},
#endif
};

std::atomic<const Isa *> current{nullptr}; // null: not asked for yet

const Isa &named(const std::string &name, const char *source) {
  std::string accepted;
  for (const Isa *isa : supported_isas()) {
    if (isa->name == name)
      return *isa;
    accepted += (accepted.empty() ? "" : ", ") + std::string(isa->name);
  }
  throw std::invalid_argument(std::string(source) + " is '" + name +
                              "'; this processor and build accept " + accepted +
                              " (or unset it for the fastest)");
}

} // namespace

std::vector<const Isa *> supported_isas() {
  std::vector<const Isa *> isas;
  for (const Isa &isa : kIsas)
    if (isa.runs_here())
      isas.push_back(&isa);
  return isas;
}

const Isa &current_isa() {
  if (const Isa *isa = current.load(std::memory_order_relaxed))
    return *isa;
  const char *forced = std::getenv("KOOPCORE_ISA");
  const bool wanted = forced != nullptr && *forced != '\0';
  const Isa &isa = wanted ? named(forced, "KOOPCORE_ISA") : *supported_isas().back();
  current.store(&isa, std::memory_order_relaxed);
  return isa;
}

void force_isa(const std::string &name) {
  current.store(name.empty() ? nullptr : &named(name, "the instruction set"),
                std::memory_order_relaxed);
}

} // namespace koopcore::cpu
