// Long horizons of the companion recurrence: powers of x modulo its characteristic polynomial.
//
// With p(x) = x^N - Σ a_i x^i, the vector S^{T-1} a holds the coefficients of x^{N-1+T} mod p, so
// squaring reaches a horizon T with 4 N² log2 T multiplications. The running sums follow from
// H_T = 1 + x + … + x^{T-1} mod p by H_{2T} = H_T + x^T H_T; Σ_{t<=T} S^{t-1} a is x^N H_T mod p.
#pragma once

#include "koopcore/lanes.h"

namespace koopcore {

KOOPCORE_HD static constexpr int polynomial_work(int columns) { return 3 * columns; }

// c <- x·c mod p.
template <class L>
KOOPCORE_HD void times_x(const typename L::Real *a, int columns, typename L::Real *c) {
  const typename L::Real last = c[columns - 1];
  for (int i = columns - 1; i > 0; --i)
    c[i] = a[i] * last + c[i - 1];
  c[0] = a[0] * last;
}

// product (2N) <- u·v mod p in its first N entries.
template <class L>
KOOPCORE_HD void multiply_modulo(const typename L::Real *a, int columns, const typename L::Real *u,
                                 const typename L::Real *v, typename L::Real *product) {
  for (int i = 0; i < 2 * columns; ++i)
    product[i] = L::broadcast(0.0);
  for (int i = 0; i < columns; ++i)
    for (int j = 0; j < columns; ++j)
      product[i + j] += u[i] * v[j];
  for (int k = 2 * columns - 2; k >= columns; --k)
    for (int i = 0; i < columns; ++i)
      product[k - columns + i] += a[i] * product[k];
}

// power = x^{N-1+T} mod p and, if asked for, total = x^N·H_T mod p, for a horizon T >= 1.
template <class L>
KOOPCORE_HD void companion_power(const typename L::Real *a, int columns, bool sums,
                                 std::int64_t horizon, typename L::Real *power,
                                 typename L::Real *total, typename L::Real *work) {
  typename L::Real *product = work;
  for (int i = 0; i < columns; ++i)
    power[i] = total[i] = L::broadcast(0.0);
  power[0] = total[0] = L::broadcast(1.0); // x^0, and H_1
  times_x<L>(a, columns, power);           // x^1
  int bit = 62;
  while (!(horizon >> bit & 1))
    --bit;
  while (bit-- > 0) {
    const bool odd = horizon >> bit & 1;
    if (sums) {
      multiply_modulo<L>(a, columns, power, total, product);
      for (int i = 0; i < columns; ++i)
        total[i] += product[i];
      if (odd) {
        times_x<L>(a, columns, total);
        total[0] += 1.0;
      }
    }
    multiply_modulo<L>(a, columns, power, power, product);
    for (int i = 0; i < columns; ++i)
      power[i] = product[i];
    if (odd)
      times_x<L>(a, columns, power);
  }
  for (int i = 0; i + 1 < columns; ++i)
    times_x<L>(a, columns, power);
  if (sums)
    for (int i = 0; i < columns; ++i)
      times_x<L>(a, columns, total);
}

} // namespace koopcore
