// SIMD of _cpu: the lane policy on vector registers, loads and stores of columns and of lanes.
//
// The counterpart of cuda/batch_lanes.h. Included only by files that are compiled per instruction
// set. Written in the vector extensions of GCC and Clang: without x86 the same code runs on two
// lanes.
#pragma once

#include "algorithms/lanes.h"

#include <cfloat>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace koopcore::cpu::KOOPCORE_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 8;
#elif defined(__AVX2__)
constexpr int kLanes = 4;
#else
constexpr int kLanes = 2;
#endif

typedef double Vec __attribute__((vector_size(kLanes * sizeof(double))));
typedef long long IntVec __attribute__((vector_size(kLanes * sizeof(double))));

// W groups at once, one per lane of a vector register.
struct SimdLanes {
  static constexpr int width = kLanes;
  using Real = Vec;
  using Mask = IntVec;

  static KOOPCORE_INLINE Real broadcast(double x) { return x - Vec{}; }
  static KOOPCORE_INLINE Mask everywhere() { return IntVec{} == IntVec{}; }
  static KOOPCORE_INLINE Real select(Mask m, Real a, Real b) { return m ? a : b; }
  static KOOPCORE_INLINE Mask equal(Real a, double b) { return a == b; }
  static KOOPCORE_INLINE Mask both(Mask a, Mask b) { return a & b; }
  static KOOPCORE_INLINE Mask either(Mask a, Mask b) { return a | b; }
  static KOOPCORE_INLINE Mask opposite(Mask m) { return ~m; }
  static KOOPCORE_INLINE bool any(Mask m) {
#if defined(__AVX512F__)
    return _mm512_test_epi64_mask((__m512i)m, (__m512i)m) != 0;
#else
    long long bits = 0;
    for (int i = 0; i < kLanes; ++i)
      bits |= m[i];
    return bits != 0;
#endif
  }
  static KOOPCORE_INLINE Real sqrt(Real x) {
#if defined(__AVX512F__)
    return (Vec)_mm512_maskz_sqrt_pd(0xff, (__m512d)x);
#elif defined(__AVX2__)
    return (Vec)_mm256_sqrt_pd((__m256d)x);
#elif defined(__SSE2__)
    return (Vec)_mm_sqrt_pd((__m128d)x);
#else
    for (int i = 0; i < kLanes; ++i)
      x[i] = __builtin_sqrt(x[i]);
    return x;
#endif
  }
  // To a unit or two in the last place, of positive numbers.
  static KOOPCORE_INLINE Real inverse_sqrt(Real x) {
#if defined(__AVX512F__)
    Vec y = (Vec)_mm512_maskz_rsqrt14_pd(0xff, (__m512d)x); // 14 bits, 28, 56
    const Vec half = 0.5 * x;
    for (int i = 0; i < 2; ++i)
      y = y + y * (0.5 - half * y * y);
    return y;
#else
    return 1.0 / sqrt(x);
#endif
  }
  // The same of 1/x, x a normal number whose inverse is one too.
  static KOOPCORE_INLINE Real inverse(Real x) {
#if defined(__AVX512F__)
    Vec y = (Vec)_mm512_maskz_rcp14_pd(0xff, (__m512d)x);
    for (int i = 0; i < 2; ++i)
      y = y + y * (1.0 - x * y);
    return y;
#else
    return 1.0 / x;
#endif
  }
  static KOOPCORE_INLINE Real max(Real a, Real b) { return a > b ? a : b; }
  static KOOPCORE_INLINE Real abs(Real x) { return (Vec)((IntVec)x & 0x7fffffffffffffffLL); }
  static KOOPCORE_INLINE Real power_of_two_scale(Real x) {
    typedef unsigned long long Bits __attribute__((vector_size(kLanes * sizeof(double))));
    const Bits field = ((Bits)x >> 52) & 0x7ff;
    const Bits scale = (1535ULL - ((field + 2) >> 1)) << 52;
    return x > 0.0 ? (Vec)scale : broadcast(1.0);
  }
};

// 2 W groups at once, in pairs of registers: for algorithms that wait for one root or quotient
// after the other, which two registers share the time of.
struct PairLanes {
  static constexpr int width = 2 * kLanes;

#if defined(__AVX512F__)
  using Half = __mmask8; // in registers of its own: no vector is made of a truth value
#define KOOPCORE_COMPARE(x, op, y) _mm512_cmp_pd_mask((__m512d)(x), (__m512d)(y), op)
  static KOOPCORE_INLINE Vec choose(Half m, Vec x, Vec y) {
    return (Vec)_mm512_mask_blend_pd(m, (__m512d)y, (__m512d)x);
  }
  static constexpr int kLess = _CMP_LT_OQ, kGreater = _CMP_GT_OQ, kEqual = _CMP_EQ_OQ;
#else
  using Half = IntVec;
  enum Comparison { kLess, kGreater, kEqual };
#define KOOPCORE_COMPARE(x, op, y)                                                                 \
  ((op) == kLess ? (x) < (y) : (op) == kGreater ? (x) > (y) : (x) == (y))
  static KOOPCORE_INLINE Vec choose(Half m, Vec x, Vec y) { return m ? x : y; }
#endif

  struct Mask {
    Half a, b;
  };

  struct Real {
    Vec a, b;

#define KOOPCORE_OPERATOR(op)                                                                      \
  friend KOOPCORE_INLINE Real operator op(const Real &x, const Real &y) {                          \
    return {x.a op y.a, x.b op y.b};                                                               \
  }                                                                                                \
  friend KOOPCORE_INLINE Real operator op(const Real &x, double y) {                               \
    return {x.a op y, x.b op y};                                                                   \
  }                                                                                                \
  friend KOOPCORE_INLINE Real operator op(double x, const Real &y) { return {x op y.a, x op y.b}; }
    KOOPCORE_OPERATOR(+)
    KOOPCORE_OPERATOR(-)
    KOOPCORE_OPERATOR(*)
    KOOPCORE_OPERATOR(/)
#undef KOOPCORE_OPERATOR
    KOOPCORE_INLINE Real operator-() const { return {-a, -b}; }
    KOOPCORE_INLINE Real &operator+=(const Real &y) { return *this = *this + y; }
    KOOPCORE_INLINE Real &operator-=(const Real &y) { return *this = *this - y; }

    friend KOOPCORE_INLINE Mask operator<(const Real &x, const Real &y) {
      return {KOOPCORE_COMPARE(x.a, kLess, y.a), KOOPCORE_COMPARE(x.b, kLess, y.b)};
    }
    friend KOOPCORE_INLINE Mask operator>(const Real &x, const Real &y) {
      return {KOOPCORE_COMPARE(x.a, kGreater, y.a), KOOPCORE_COMPARE(x.b, kGreater, y.b)};
    }
    friend KOOPCORE_INLINE Mask operator<(const Real &x, double y) { return x < broadcast(y); }
    friend KOOPCORE_INLINE Mask operator>(const Real &x, double y) { return x > broadcast(y); }
  };

  static KOOPCORE_INLINE Real broadcast(double x) {
    return {SimdLanes::broadcast(x), SimdLanes::broadcast(x)};
  }
  static KOOPCORE_INLINE Real select(const Mask &m, const Real &x, const Real &y) {
    return {choose(m.a, x.a, y.a), choose(m.b, x.b, y.b)};
  }
  static KOOPCORE_INLINE Mask equal(const Real &x, double y) {
    const Vec other = SimdLanes::broadcast(y);
    return {KOOPCORE_COMPARE(x.a, kEqual, other), KOOPCORE_COMPARE(x.b, kEqual, other)};
  }
#undef KOOPCORE_COMPARE
  static KOOPCORE_INLINE Mask both(const Mask &x, const Mask &y) {
    return {Half(x.a & y.a), Half(x.b & y.b)};
  }
  static KOOPCORE_INLINE Mask either(const Mask &x, const Mask &y) {
    return {Half(x.a | y.a), Half(x.b | y.b)};
  }
  static KOOPCORE_INLINE Mask opposite(const Mask &m) { return {Half(~m.a), Half(~m.b)}; }
  static KOOPCORE_INLINE bool any(const Mask &m) {
#if defined(__AVX512F__)
    return (m.a | m.b) != 0;
#else
    return SimdLanes::any(m.a | m.b);
#endif
  }
  static KOOPCORE_INLINE Real sqrt(const Real &x) {
    return {SimdLanes::sqrt(x.a), SimdLanes::sqrt(x.b)};
  }
  static KOOPCORE_INLINE Real inverse_sqrt(const Real &x) {
    return {SimdLanes::inverse_sqrt(x.a), SimdLanes::inverse_sqrt(x.b)};
  }
  static KOOPCORE_INLINE Real inverse(const Real &x) {
    return {SimdLanes::inverse(x.a), SimdLanes::inverse(x.b)};
  }
  static KOOPCORE_INLINE Real max(const Real &x, const Real &y) {
    return {SimdLanes::max(x.a, y.a), SimdLanes::max(x.b, y.b)};
  }
  static KOOPCORE_INLINE Real abs(const Real &x) {
    return {SimdLanes::abs(x.a), SimdLanes::abs(x.b)};
  }
  static KOOPCORE_INLINE Real power_of_two_scale(const Real &x) {
    return {SimdLanes::power_of_two_scale(x.a), SimdLanes::power_of_two_scale(x.b)};
  }
};

// One group, scalar arithmetic: for the algorithms whose course depends on the data.
struct OwnTag {};
using Scalar = ScalarLanes<OwnTag>;

template <class T> struct NarrowOf {
  typedef T Type __attribute__((vector_size(kLanes * sizeof(T))));
};
template <class T> using Narrow = typename NarrowOf<T>::Type;

// Conversions between float32 and float64. Spelled out because GCC 12 splits its generic ones into
// halves, with a shuffle for each; the masked forms are the ones without an uninitialized operand.
KOOPCORE_INLINE Vec widen(Narrow<double> x) { return x; }
KOOPCORE_INLINE Vec widen(Narrow<float> x) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_cvtps_pd(0xff, (__m256)x);
#elif defined(__AVX2__)
  return (Vec)_mm256_cvtps_pd((__m128)x);
#else
  return __builtin_convertvector(x, Vec);
#endif
}
template <class T> KOOPCORE_INLINE Narrow<T> narrow(Vec x);
template <> KOOPCORE_INLINE Narrow<double> narrow<double>(Vec x) { return x; }
template <> KOOPCORE_INLINE Narrow<float> narrow<float>(Vec x) {
#if defined(__AVX512F__)
  return (Narrow<float>)_mm512_maskz_cvtpd_ps(0xff, (__m512d)x);
#elif defined(__AVX2__)
  return (Narrow<float>)_mm256_cvtpd_ps((__m256d)x);
#else
  return __builtin_convertvector(x, Narrow<float>);
#endif
}

// The largest finite number of a type.
template <class T>
constexpr double kLargest = sizeof(T) == sizeof(float) ? double(FLT_MAX) : DBL_MAX;

// Bytes by which snapshots are fetched ahead: the hardware follows n streams, but not across pages.
constexpr std::ptrdiff_t kPrefetchAhead = 1024, kPrefetchLine = 64;

// W consecutive numbers from memory of any alignment, as float64.
template <class T> KOOPCORE_INLINE Vec load(const void *p) {
  Narrow<T> x;
  __builtin_memcpy(&x, p, sizeof x);
  return widen(x);
}

// The first `count` < W of consecutive numbers, zeros behind them; nothing past them is read.
template <class T> KOOPCORE_INLINE Vec load_first(const void *p, int count) {
#if defined(__AVX512F__) && defined(__AVX512VL__)
  const __mmask8 mask = __mmask8((1u << count) - 1);
  if (sizeof(T) == sizeof(float))
    return (Vec)_mm512_maskz_cvtps_pd(0xff, _mm256_maskz_loadu_ps(mask, p));
  return (Vec)_mm512_maskz_loadu_pd(mask, p);
#elif defined(__AVX2__)
  const __m128i ahead = _mm_cmpgt_epi32(_mm_set1_epi32(count), _mm_setr_epi32(0, 1, 2, 3));
  if (sizeof(T) == sizeof(float))
    return (Vec)_mm256_cvtps_pd(_mm_maskload_ps(static_cast<const float *>(p), ahead));
  return (Vec)_mm256_maskload_pd(static_cast<const double *>(p), _mm256_cvtepi32_epi64(ahead));
#else
  static_assert(kLanes == 2, "one number is all that can be left");
  T x;
  __builtin_memcpy(&x, p, sizeof x);
  return count > 0 ? Vec{double(x), 0.0} : Vec{};
#endif
}

// `count` <= W numbers `step` bytes apart; the other lanes are zero. Built in registers: a vector
// read back from scalar stores would wait for all of them.
template <class T> KOOPCORE_INLINE Vec gather(const char *p, std::ptrdiff_t step, int count) {
  Narrow<T> x;
  for (int i = 0; i < kLanes; ++i) {
    T one = T(0);
    if (i < count)
      __builtin_memcpy(&one, p + i * step, sizeof one);
    x[i] = one;
  }
  return widen(x);
}

// v[i] becomes the vector of the i-th lanes of v[0] … v[W-1].
KOOPCORE_INLINE void transpose(Vec *v) {
#if defined(__AVX512F__)
  Vec t[8], u[8]; // only shuffles whose pattern is part of the instruction
  for (int i = 0; i < 8; i += 2) {
    t[i] = __builtin_shufflevector(v[i], v[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
    t[i + 1] = __builtin_shufflevector(v[i], v[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
  }
  for (int half = 0; half < 8; half += 4)
    for (int odd = 0; odd < 2; ++odd) {
      const Vec a = t[half + odd], b = t[half + odd + 2];
      u[half + odd] = __builtin_shufflevector(a, b, 0, 1, 4, 5, 8, 9, 12, 13);
      u[half + odd + 2] = __builtin_shufflevector(a, b, 2, 3, 6, 7, 10, 11, 14, 15);
    }
  for (int i = 0; i < 4; ++i) {
    v[i] = __builtin_shufflevector(u[i], u[i + 4], 0, 1, 4, 5, 8, 9, 12, 13);
    v[i + 4] = __builtin_shufflevector(u[i], u[i + 4], 2, 3, 6, 7, 10, 11, 14, 15);
  }
#elif defined(__AVX2__)
  Vec t[4];
  for (int i = 0; i < 4; i += 2) {
    t[i] = __builtin_shufflevector(v[i], v[i + 1], 0, 4, 2, 6);
    t[i + 1] = __builtin_shufflevector(v[i], v[i + 1], 1, 5, 3, 7);
  }
  for (int j = 0; j < 2; ++j) {
    v[j] = __builtin_shufflevector(t[j], t[j + 2], 0, 1, 4, 5);
    v[j + 2] = __builtin_shufflevector(t[j], t[j + 2], 2, 3, 6, 7);
  }
#else
  const Vec low = __builtin_shufflevector(v[0], v[1], 0, 2);
  v[1] = __builtin_shufflevector(v[0], v[1], 1, 3);
  v[0] = low;
#endif
}

// The vector whose lane i is the sum of all lanes of v[i].
KOOPCORE_INLINE Vec sum_lanes(const Vec *v) {
#if defined(__AVX512F__)
  Vec t[4], u[2];
  for (int i = 0; i < 4; ++i)
    t[i] = __builtin_shufflevector(v[2 * i], v[2 * i + 1], 0, 8, 2, 10, 4, 12, 6, 14) +
           __builtin_shufflevector(v[2 * i], v[2 * i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
  for (int i = 0; i < 2; ++i)
    u[i] = __builtin_shufflevector(t[2 * i], t[2 * i + 1], 0, 1, 8, 9, 4, 5, 12, 13) +
           __builtin_shufflevector(t[2 * i], t[2 * i + 1], 2, 3, 10, 11, 6, 7, 14, 15);
  return __builtin_shufflevector(u[0], u[1], 0, 1, 2, 3, 8, 9, 10, 11) +
         __builtin_shufflevector(u[0], u[1], 4, 5, 6, 7, 12, 13, 14, 15);
#elif defined(__AVX2__)
  Vec t[2];
  for (int i = 0; i < 2; ++i)
    t[i] = __builtin_shufflevector(v[2 * i], v[2 * i + 1], 0, 4, 2, 6) +
           __builtin_shufflevector(v[2 * i], v[2 * i + 1], 1, 5, 3, 7);
  return __builtin_shufflevector(t[0], t[1], 0, 1, 4, 5) +
         __builtin_shufflevector(t[0], t[1], 2, 3, 6, 7);
#else
  return __builtin_shufflevector(v[0], v[1], 0, 2) + __builtin_shufflevector(v[0], v[1], 1, 3);
#endif
}

// The nearest number that T can hold; a NaN stays one.
template <class T> KOOPCORE_INLINE Vec clip(Vec x) {
  const Vec limit = SimdLanes::broadcast(kLargest<T>);
  x = x > limit ? limit : x;
  return x < -limit ? -limit : x;
}

namespace {

// Rows of numbers, one group each, into vectors of one group per lane: out[i] <- entry i of W rows,
// `rows` apart; lanes past `count` repeat the first row.
inline void to_lanes(const double *from, std::ptrdiff_t rows, int count, int entries, Vec *out) {
  const double *row[kLanes];
  for (int lane = 0; lane < kLanes; ++lane)
    row[lane] = from + (lane < count ? lane : 0) * rows;
  int i = 0;
  for (; i + kLanes <= entries; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane)
      __builtin_memcpy(&out[i + lane], row[lane] + i, sizeof(Vec));
    transpose(out + i);
  }
  for (; i < entries; ++i)
    for (int lane = 0; lane < kLanes; ++lane)
      out[i][lane] = row[lane][i];
}

// The way back, for the first `count` lanes.
inline void from_lanes(const Vec *from, std::ptrdiff_t rows, int count, int entries, double *out) {
  int i = 0;
  for (; i + kLanes <= entries; i += kLanes) {
    Vec block[kLanes];
    for (int lane = 0; lane < kLanes; ++lane)
      block[lane] = from[i + lane];
    transpose(block);
    for (int lane = 0; lane < count; ++lane)
      __builtin_memcpy(out + lane * rows + i, &block[lane], sizeof(Vec));
  }
  for (; i < entries; ++i)
    for (int lane = 0; lane < count; ++lane)
      out[lane * rows + i] = from[i][lane];
}

} // namespace

} // namespace koopcore::cpu::KOOPCORE_ISA
