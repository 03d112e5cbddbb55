// Python bindings of _cpu.
#include "cpu/isa.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace koopcore::cpu {
namespace portable {
int lanes();
}
#ifdef KOOPCORE_HAVE_AVX2
namespace avx2 {
int lanes();
}
#endif
#ifdef KOOPCORE_HAVE_AVX512
namespace avx512 {
int lanes();
}
#endif

namespace {

int lanes(Isa isa) {
  switch (isa) {
#ifdef KOOPCORE_HAVE_AVX512
  case Isa::avx512:
    return avx512::lanes();
#endif
#ifdef KOOPCORE_HAVE_AVX2
  case Isa::avx2:
    return avx2::lanes();
#endif
  default:
    return portable::lanes();
  }
}

} // namespace
} // namespace koopcore::cpu

PYBIND11_MODULE(_cpu, m) {
  using namespace koopcore::cpu;
  m.doc() = "koopcore kernels for CPUs";
  m.def(
      "isa", [] { return isa_name(chosen_isa()); },
      "Instruction set in use: avx512, avx2 or portable. Set KOOPCORE_ISA to force one.");
  m.def("lanes", [] { return lanes(chosen_isa()); }, "Doubles per vector register of isa().");
  m.def(
      "supported_isas",
      [] {
        std::vector<std::string> names;
        for (Isa isa : supported_isas())
          names.emplace_back(isa_name(isa));
        return names;
      },
      "Instruction sets that were compiled in and that this processor runs, slowest first.");
}
