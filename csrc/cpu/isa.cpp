// Instruction sets of _cpu: detection, and the choice that KOOPCORE_ISA can force.
#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>

namespace koopcore::cpu {

const char *isa_name(Isa isa) {
  switch (isa) {
  case Isa::avx512:
    return "avx512";
  case Isa::avx2:
    return "avx2";
  case Isa::portable:
    break;
  }
  return "portable";
}

// __builtin_cpu_supports also asks whether the operating system saves the wide registers.
std::vector<Isa> supported_isas() {
  std::vector<Isa> isas{Isa::portable};
#ifdef KOOPCORE_HAVE_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    isas.push_back(Isa::avx2);
#endif
#ifdef KOOPCORE_HAVE_AVX512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("fma"))
    isas.push_back(Isa::avx512);
#endif
  return isas;
}

Isa chosen_isa() {
  const std::vector<Isa> isas = supported_isas();
  const char *forced = std::getenv("KOOPCORE_ISA");
  if (forced == nullptr || *forced == '\0')
    return isas.back();
  std::string accepted;
  for (Isa isa : isas) {
    if (isa_name(isa) == std::string(forced))
      return isa;
    accepted += (accepted.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  throw std::invalid_argument("KOOPCORE_ISA is '" + std::string(forced) +
                              "'; this processor and build accept " + accepted +
                              " (or unset it for the fastest)");
}

} // namespace koopcore::cpu
