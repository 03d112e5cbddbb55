// Kernels of _cpu, compiled once per instruction set into the namespace KOOPCORE_ISA.
namespace koopcore::cpu::KOOPCORE_ISA {

// Doubles per vector register: what the kernels are tiled for.
int lanes() {
#if defined(__AVX512F__)
  return 8;
#elif defined(__AVX2__)
  return 4;
#else
  return 2;
#endif
}

} // namespace koopcore::cpu::KOOPCORE_ISA
