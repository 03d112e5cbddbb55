// Long horizons of the companion recurrence: powers of x modulo its characteristic polynomial.
//
// With p(x) = x^N - Σ a_i x^i, the vector S^{T-1} a holds the coefficients of x^{N-1+T} mod p, so
// squaring reaches a horizon T with 4 N² log2 T multiplications. The running sums follow from
// H_T = 1 + x + … + x^{T-1} mod p by H_{2T} = H_T + x^T H_T; Σ_{t<=T} S^{t-1} a is x^N H_T mod p.
#pragma once

#include "algorithms/lanes.h"

namespace koopcore {

constexpr int kPowerTile = 8; // coefficients of a product made together

KOOPCORE_HD static constexpr int polynomial_work(int columns) { return 3 * (columns + kPowerTile); }

// c <- x·c mod p.
template <class L>
KOOPCORE_HD void times_x(const typename L::Real *a, int columns, typename L::Real *c) {
  const typename L::Real last = c[columns - 1];
  for (int i = columns - 1; i > 0; --i)
    c[i] = a[i] * last + c[i - 1];
  c[0] = a[0] * last;
}

// Coefficients k … k + 7 of u·v. `v` has zeros around it, seven in front and seven behind.
template <class L>
KOOPCORE_HD void convolve_eight(const typename L::Real *u, const typename L::Real *v, int columns,
                                int k, typename L::Real *out) {
  using Real = typename L::Real;
  Real s[kPowerTile];
  KOOPCORE_UNROLL
  for (int c = 0; c < kPowerTile; ++c)
    s[c] = L::broadcast(0.0);
  const int low = k - columns + 1 > 0 ? k - columns + 1 : 0;
  const int high = k + kPowerTile < columns ? k + kPowerTile : columns;
  for (int i = low; i < high; ++i) {
    const Real x = u[i];
    KOOPCORE_UNROLL
    for (int c = 0; c < kPowerTile; ++c)
      s[c] += x * v[k + c - i];
  }
  KOOPCORE_UNROLL
  for (int c = 0; c < kPowerTile; ++c)
    out[k + c] = s[c];
}

// The R leading coefficients, of x^{k-R+1} … x^k, are replaced by multiples of lower powers, where
// x^N = Σ a_i x^i: first among each other, then all lower ones with R products each.
template <class L, int R>
KOOPCORE_HD void reduce_leading(const typename L::Real *a, int columns, int k,
                                typename L::Real *product) {
  using Real = typename L::Real;
  Real top[R];
  KOOPCORE_UNROLL
  for (int r = 0; r < R; ++r) {
    top[r] = product[k - r];
    KOOPCORE_UNROLL
    for (int q = 0; q < r; ++q)
      top[r] += a[columns - (r - q)] * top[q];
  }
  Real *to = product + (k - columns - R + 1); // as far down as x^{k-R+1} reaches
  KOOPCORE_UNROLL
  for (int i = 0; i < R - 1; ++i)
    KOOPCORE_UNROLL
  for (int r = R - 1 - i; r < R; ++r)
    to[i] += a[i - (R - 1 - r)] * top[r];
  for (int i = R - 1; i < columns; ++i) {
    Real s = to[i];
    KOOPCORE_UNROLL
    for (int r = 0; r < R; ++r)
      s += a[i - (R - 1 - r)] * top[r];
    to[i] = s;
  }
}

// product (2N + 8) <- u·v mod p in its first N entries; `v` as `convolve_eight` takes it.
template <class L>
KOOPCORE_HD void multiply_modulo(const typename L::Real *a, int columns, const typename L::Real *u,
                                 const typename L::Real *v, typename L::Real *product) {
  for (int k = 0; k < 2 * columns - 1; k += kPowerTile)
    convolve_eight<L>(u, v, columns, k, product);
  int k = 2 * columns - 2;
  for (; k - 3 >= columns; k -= 4)
    reduce_leading<L, 4>(a, columns, k, product);
  for (; k >= columns; --k)
    reduce_leading<L, 1>(a, columns, k, product);
}

// power = x^{N-1+T} mod p and, if asked for, total = x^N·H_T mod p, for a horizon T >= 1.
// work: polynomial_work(N).
template <class L>
KOOPCORE_HD void companion_power(const typename L::Real *a, int columns, bool sums,
                                 std::int64_t horizon, typename L::Real *power,
                                 typename L::Real *total, typename L::Real *work) {
  using Real = typename L::Real;
  Real *product = work, *x = product + 2 * columns + kPowerTile + (kPowerTile - 1);
  for (int i = 1 - kPowerTile; i < columns + kPowerTile - 1; ++i)
    x[i] = L::broadcast(0.0);
  for (int i = 0; i < columns; ++i)
    total[i] = x[i];
  x[0] = total[0] = L::broadcast(1.0); // x^0, and H_1
  times_x<L>(a, columns, x);           // x^1
  int bit = 62;
  while (!(horizon >> bit & 1))
    --bit;
  while (bit-- > 0) {
    const bool odd = horizon >> bit & 1;
    if (sums) {
      multiply_modulo<L>(a, columns, total, x, product);
      for (int i = 0; i < columns; ++i)
        total[i] += product[i];
      if (odd) {
        times_x<L>(a, columns, total);
        total[0] += 1.0;
      }
    }
    multiply_modulo<L>(a, columns, x, x, product);
    for (int i = 0; i < columns; ++i)
      x[i] = product[i];
    if (odd)
      times_x<L>(a, columns, x);
  }
  for (int i = 0; i + 1 < columns; ++i)
    times_x<L>(a, columns, x);
  for (int i = 0; i < columns; ++i)
    power[i] = x[i];
  if (sums)
    for (int i = 0; i < columns; ++i)
      times_x<L>(a, columns, total);
}

} // namespace koopcore
