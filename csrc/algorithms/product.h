// Products of small matrices of one group per lane, in tiles that stay in registers.
//
// A tile of 4 × 4 sums takes 8 loads for 16 products; smaller ones finish the edges.
#pragma once

#include "algorithms/lanes.h"

namespace koopcore {

// How the left factor of `multiply` is stored.
enum class Left { plain, transposed };

template <class L, Left Form, int R, int C>
KOOPCORE_HD void product_tile(const typename L::Real *a, int a_width, const typename L::Real *b,
                              int b_width, int inner, typename L::Real *out) {
  typename L::Real s[R][C];
  KOOPCORE_UNROLL
  for (int r = 0; r < R; ++r)
    KOOPCORE_UNROLL
  for (int c = 0; c < C; ++c)
    s[r][c] = L::broadcast(0.0);
  for (int k = 0; k < inner; ++k)
    KOOPCORE_UNROLL
  for (int r = 0; r < R; ++r) {
    const typename L::Real x = Form == Left::plain ? a[r * a_width + k] : a[k * a_width + r];
    KOOPCORE_UNROLL
    for (int c = 0; c < C; ++c)
      s[r][c] += x * b[k * b_width + c];
  }
  KOOPCORE_UNROLL
  for (int r = 0; r < R; ++r)
    KOOPCORE_UNROLL
  for (int c = 0; c < C; ++c)
    out[r * b_width + c] = s[r][c];
}

template <class L, Left Form, int R>
KOOPCORE_HD void product_rows(const typename L::Real *a, int a_width, const typename L::Real *b,
                              int b_width, int inner, typename L::Real *out) {
  int j = 0;
  for (; j + 4 <= b_width; j += 4)
    product_tile<L, Form, R, 4>(a, a_width, b + j, b_width, inner, out + j);
  if (b_width - j == 3)
    product_tile<L, Form, R, 3>(a, a_width, b + j, b_width, inner, out + j);
  else if (b_width - j == 2)
    product_tile<L, Form, R, 2>(a, a_width, b + j, b_width, inner, out + j);
  else if (b_width - j == 1)
    product_tile<L, Form, R, 1>(a, a_width, b + j, b_width, inner, out + j);
}

// out = A B, or Aᵀ B: (rows × columns) from an inner dimension of `inner`. A is (rows × inner), or
// (inner × rows) where transposed; B is (inner × columns). out is neither.
template <class L, Left Form>
KOOPCORE_HD KOOPCORE_CALLED void multiply(const typename L::Real *a, const typename L::Real *b,
                                          int rows, int inner, int columns, typename L::Real *out) {
  const int a_width = Form == Left::plain ? inner : rows;
  const int next = Form == Left::plain ? inner : 1; // from a row of A to the next
  int i = 0;
  for (; i + 4 <= rows; i += 4)
    product_rows<L, Form, 4>(a + i * next, a_width, b, columns, inner, out + i * columns);
  if (rows - i == 3)
    product_rows<L, Form, 3>(a + i * next, a_width, b, columns, inner, out + i * columns);
  else if (rows - i == 2)
    product_rows<L, Form, 2>(a + i * next, a_width, b, columns, inner, out + i * columns);
  else if (rows - i == 1)
    product_rows<L, Form, 1>(a + i * next, a_width, b, columns, inner, out + i * columns);
}

// Σ x_i y_i, even and odd terms apart: two sums that do not wait for each other.
template <class L>
KOOPCORE_HD typename L::Real dot(const typename L::Real *x, const typename L::Real *y, int count) {
  typename L::Real even = L::broadcast(0.0), odd = L::broadcast(0.0);
  int i = 0;
  for (; i + 2 <= count; i += 2) {
    even += x[i] * y[i];
    odd += x[i + 1] * y[i + 1];
  }
  if (i < count)
    even += x[i] * y[i];
  return even + odd;
}

// R rows of out = A x, even and odd columns apart: enough independent sums for two multipliers.
template <class L, int R>
KOOPCORE_HD void apply_rows(const typename L::Real *a, int columns, const typename L::Real *x,
                            typename L::Real *out) {
  typename L::Real even[R], odd[R];
  KOOPCORE_UNROLL
  for (int r = 0; r < R; ++r)
    even[r] = odd[r] = L::broadcast(0.0);
  int j = 0;
  for (; j + 2 <= columns; j += 2)
    KOOPCORE_UNROLL
  for (int r = 0; r < R; ++r) {
    even[r] += a[r * columns + j] * x[j];
    odd[r] += a[r * columns + j + 1] * x[j + 1];
  }
  KOOPCORE_UNROLL
  for (int r = 0; r < R; ++r) {
    if (j < columns)
      even[r] += a[r * columns + j] * x[j];
    out[r] = even[r] + odd[r];
  }
}

// out = A x, with A (rows × columns) row-major; out is not x.
template <class L>
KOOPCORE_HD void apply(const typename L::Real *a, int rows, int columns, const typename L::Real *x,
                       typename L::Real *out) {
  int i = 0;
  for (; i + 4 <= rows; i += 4)
    apply_rows<L, 4>(a + i * columns, columns, x, out + i);
  if (rows - i == 3)
    apply_rows<L, 3>(a + i * columns, columns, x, out + i);
  else if (rows - i == 2)
    apply_rows<L, 2>(a + i * columns, columns, x, out + i);
  else if (rows - i == 1)
    apply_rows<L, 1>(a + i * columns, columns, x, out + i);
}

} // namespace koopcore
