// Instruction sets of _cpu: detection, and the choice that KOOPCORE_ISA can force.
#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace koopcore::cpu {

namespace portable {
extern const Kernels kernels;
}
#ifdef KOOPCORE_HAVE_AVX2
namespace avx2 {
extern const Kernels kernels;
}
#endif
#ifdef KOOPCORE_HAVE_AVX512
namespace avx512 {
extern const Kernels kernels;
}
#endif

namespace {

constexpr int kNotChosen = -1;
std::atomic<int> choice{kNotChosen};

Isa find_isa(const std::string &name, const char *source) {
  std::string accepted;
  for (Isa isa : supported_isas()) {
    if (isa_name(isa) == name)
      return isa;
    accepted += (accepted.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  throw std::invalid_argument(std::string(source) + " is '" + name +
                              "'; this processor and build accept " + accepted +
                              " (or unset it for the fastest)");
}

} // namespace

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
  const int known = choice.load(std::memory_order_relaxed);
  if (known != kNotChosen)
    return static_cast<Isa>(known);
  const char *forced = std::getenv("KOOPCORE_ISA");
  const bool named = forced != nullptr && *forced != '\0';
  const Isa isa = named ? find_isa(forced, "KOOPCORE_ISA") : supported_isas().back();
  choice.store(static_cast<int>(isa), std::memory_order_relaxed);
  return isa;
}

void force_isa(const std::string &name) {
  const int isa =
      name.empty() ? kNotChosen : static_cast<int>(find_isa(name, "the instruction set"));
  choice.store(isa, std::memory_order_relaxed);
}

const Kernels &chosen_kernels() {
  switch (chosen_isa()) {
#ifdef KOOPCORE_HAVE_AVX512
  case Isa::avx512:
    return avx512::kernels;
#endif
#ifdef KOOPCORE_HAVE_AVX2
  case Isa::avx2:
    return avx2::kernels;
#endif
  default:
    return portable::kernels;
  }
}

} // namespace koopcore::cpu
