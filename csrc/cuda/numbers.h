// Numbers as they are stored: read as float or double, written within the range of their type.
#pragma once

#include "cuda/problem.h"
#include "cuda/two_float.h"

#include <cuda_runtime.h>

#include <cfloat>

namespace koopcore::cuda {

// The 16 leading bits of a float, rounded to even: bfloat16.
KOOPCORE_HD inline std::uint16_t to_bfloat16(float x) {
  std::uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u)
    return 0x7fc0; // a NaN
  return std::uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
KOOPCORE_HD inline float from_bfloat16(std::uint16_t x) {
  const std::uint32_t bits = std::uint32_t(x) << 16;
  float out;
  memcpy(&out, &bits, sizeof out);
  return out;
}

KOOPCORE_HD inline int bytes_of(Kind kind) {
  return kind == kFloat64 ? 8 : kind == kFloat32 ? 4 : 2;
}

KOOPCORE_HD inline double read_number(const char *p, Kind kind) {
  if (kind == kFloat64)
    return *reinterpret_cast<const double *>(p);
  if (kind == kFloat32)
    return *reinterpret_cast<const float *>(p);
  return from_bfloat16(*reinterpret_cast<const std::uint16_t *>(p));
}

KOOPCORE_HD inline void write_number(char *p, Kind kind, double x) {
  if (kind == kFloat64)
    *reinterpret_cast<double *>(p) = x;
  else if (kind == kFloat32)
    *reinterpret_cast<float *>(p) = float(x);
  else
    *reinterpret_cast<std::uint16_t *>(p) = to_bfloat16(float(x));
}

// x within the finite numbers of `kind`: predictions are always finite.
KOOPCORE_HD inline double clamp_to(Kind kind, double x) {
  const double limit = kind == kFloat64   ? DBL_MAX
                       : kind == kFloat32 ? double(FLT_MAX)
                                          : 3.3895313892515355e38; // the largest bfloat16
  return x > limit ? limit : x < -limit ? -limit : x;
}

// The float next to x, and x as a number of `kind`: both finite. Two floats are finite already.
KOOPCORE_HD inline float to_float32(double x) { return float(clamp_to(kFloat32, x)); }
KOOPCORE_HD inline float to_float32(const TwoFloat &x) { return x.hi; }

KOOPCORE_HD inline void write_finite(char *p, Kind kind, double x) {
  write_number(p, kind, clamp_to(kind, x));
}
KOOPCORE_HD inline void write_finite(char *p, Kind kind, const TwoFloat &x) {
  if (kind == kFloat32)
    *reinterpret_cast<float *>(p) = x.hi;
  else
    write_finite(p, kind, double(x.hi) + double(x.lo));
}

} // namespace koopcore::cuda
