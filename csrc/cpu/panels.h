// Matrices of one large group in panels of W columns: products, triangular factors, and vectors.
//
// Panel j holds columns j W … j W + W - 1, row after row, each row one register. A matrix (k, M)
// in panels is at once the left factor of AᵀB, of which a tile wants W neighbours of a row, and the
// right one, of which it wants registers: nothing is packed twice. Numbers of rows and columns are
// multiples of W; what is past the matrix is zero, or the identity on the diagonal of triangles.
// Included only by files that are compiled per instruction set.
#pragma once

#include "cpu/simd.h"

namespace koopcore::cpu::KOOPCORE_ISA {

namespace {

struct Panels {
  Vec *data;
  std::ptrdiff_t rows; // of every panel

  Vec *panel(int j) const { return data + j * rows; }
  double *numbers(int j) const { return reinterpret_cast<double *>(panel(j)); }
  double &at(int i, int j) const { return numbers(j / kLanes)[i * kLanes + j % kLanes]; }
};

// Rows of both factors that are summed in registers before the sums are added to those in memory:
// what a tile reads stays in the first-level cache, and rounding grows with additions in a row.
constexpr int kDepth = 128;

// What becomes of the entries that a product is of.
enum class Sum { set, add, subtract };

// The W × (R W) entries at `out`, rows `stride` between its panels, from the products of `depth`
// rows of a panel a and R panels b.
template <int R>
__attribute__((noinline)) void tile(Sum sum, const double *a, const Vec *b, std::ptrdiff_t b_stride,
                                    int depth, Vec *out, std::ptrdiff_t out_stride) {
  Vec s[R][kLanes];
  KOOPCORE_UNROLL
  for (int r = 0; r < R; ++r)
    KOOPCORE_UNROLL
  for (int c = 0; c < kLanes; ++c)
    s[r][c] = Vec{};
  for (int k = 0; k < depth; ++k, a += kLanes) {
    Vec x[R];
    KOOPCORE_UNROLL
    for (int r = 0; r < R; ++r)
      x[r] = b[r * b_stride + k];
    KOOPCORE_UNROLL
    for (int c = 0; c < kLanes; ++c)
      KOOPCORE_UNROLL
    for (int r = 0; r < R; ++r)
      s[r][c] += a[c] * x[r];
  }
  const auto put = [&](auto &&put_one) {
    KOOPCORE_UNROLL
    for (int r = 0; r < R; ++r)
      KOOPCORE_UNROLL
    for (int c = 0; c < kLanes; ++c)
      put_one(out[r * out_stride + c], s[r][c]);
  };
  if (sum == Sum::set)
    put([](Vec &to, const Vec &x) { to = x; });
  else if (sum == Sum::add)
    put([](Vec &to, const Vec &x) { to += x; });
  else
    put([](Vec &to, const Vec &x) { to -= x; });
}

// Panels that a tile of a row of `left` takes: three fill the registers, two twos are faster than
// three and one.
constexpr int tile_width(int left) { return left == 3 || left > 4 ? 3 : left < 2 ? left : 2; }

// Some of the panels and rows of a product.
struct Range {
  int begin, end;
};

// out <- AᵀB, or plus or minus it: rows of its panels `i` and columns of its panels `j`. The
// entries of panels i and j … j + width - 1 are summed over the rows over(i, j, width) of A and B;
// where there are none, they are set to zero or left alone.
template <class Over>
void product(Sum sum, const Panels &a, const Panels &b, const Panels &out, Range i, Range j,
             Over &&over) {
  int most = 1;
  for (int row = i.begin; row < i.end; ++row)
    for (int column = j.begin; column < j.end;) {
      const int width = tile_width(j.end - column), end = over(row, column, width).end;
      most = end > most ? end : most;
      column += width;
    }
  for (int from = 0; from < most; from += kDepth)
    for (int column = j.begin; column < j.end;) {
      const int width = tile_width(j.end - column);
      for (int row = i.begin; row < i.end; ++row) {
        Range k = over(row, column, width);
        const bool none = k.begin >= k.end && from == 0;
        const bool first = k.begin >= from;
        k.begin = first ? k.begin : from;
        k.end = k.end < from + kDepth ? k.end : from + kDepth;
        if (k.begin >= k.end && !(none && sum == Sum::set))
          continue;
        const Sum how = sum == Sum::set && !first ? Sum::add : sum;
        const double *left = a.numbers(row) + k.begin * kLanes;
        const Vec *right = b.panel(column) + k.begin;
        Vec *to = out.panel(column) + row * kLanes;
        const int depth = k.end - k.begin;
        if (width == 3)
          tile<3>(how, left, right, b.rows, depth, to, out.rows);
        else if (width == 2)
          tile<2>(how, left, right, b.rows, depth, to, out.rows);
        else
          tile<1>(how, left, right, b.rows, depth, to, out.rows);
      }
      column += width;
    }
}

inline void clear(const Panels &a, int panels) {
  for (std::ptrdiff_t i = 0; i < panels * a.rows; ++i)
    a.data[i] = Vec{};
}

// The W × W block of panels i and j of `from`, transposed, to panels j and i of `to`.
inline void transpose_block(const Panels &from, int i, int j, const Panels &to) {
  Vec block[kLanes];
  for (int r = 0; r < kLanes; ++r)
    block[r] = from.panel(j)[i * kLanes + r];
  transpose(block);
  for (int r = 0; r < kLanes; ++r)
    to.panel(i)[j * kLanes + r] = block[r];
}

inline void transpose_all(const Panels &from, int panels, const Panels &to) {
  for (int i = 0; i < panels; ++i)
    for (int j = 0; j < panels; ++j)
      transpose_block(from, i, j, to);
}

// The blocks below the diagonal from those above.
inline void mirror(const Panels &a, int panels) {
  for (int i = 0; i < panels; ++i)
    for (int j = i + 1; j < panels; ++j)
      transpose_block(a, i, j, a);
}

constexpr int kTriangle = 64 / kLanes; // panels of a triangle that is solved block by block

// U, upper triangular, of A = Uᵀ U, over the upper triangle of A; `lower` <- Uᵀ. False where a
// pivot is not positive.
inline bool cholesky(const Panels &a, int panels, const Panels &lower) {
  for (int outer = 0; outer < panels; outer += kTriangle) {
    const int end = outer + kTriangle < panels ? outer + kTriangle : panels;
    product(Sum::subtract, a, a, a, {outer, end}, {outer, panels},
            [&](int i, int j, int width) { return Range{0, j + width > i ? outer * kLanes : 0}; });
    for (int block = outer; block < end; ++block) {
      product(Sum::subtract, a, a, a, {block, block + 1}, {block, panels},
              [&](int, int, int) { return Range{outer * kLanes, block * kLanes}; });
      Vec *d = a.panel(block) + block * kLanes;
      double inverse[kLanes];
      for (int r = 0; r < kLanes; ++r) {
        const double pivot = d[r][r];
        if (!(pivot > 0.0))
          return false;
        const double root = Scalar::sqrt(pivot);
        inverse[r] = 1.0 / root;
        d[r] = d[r] * inverse[r];
        d[r][r] = root;
        for (int q = r + 1; q < kLanes; ++q)
          d[q] -= d[r][q] * d[r];
      }
      for (int r = 1; r < kLanes; ++r)
        for (int c = 0; c < r; ++c)
          d[r][c] = 0.0;
      transpose_block(a, block, block, lower);
      for (int j = block + 1; j < panels; ++j) {
        Vec *const to = a.panel(j) + block * kLanes;
        Vec x[kLanes];
        KOOPCORE_UNROLL
        for (int r = 0; r < kLanes; ++r)
          x[r] = to[r];
        KOOPCORE_UNROLL
        for (int r = 0; r < kLanes; ++r) {
          x[r] = x[r] * inverse[r];
          KOOPCORE_UNROLL
          for (int q = r + 1; q < kLanes; ++q)
            x[q] -= d[r][q] * x[r];
        }
        KOOPCORE_UNROLL
        for (int r = 0; r < kLanes; ++r)
          to[r] = x[r];
        transpose_block(a, block, j, lower);
      }
    }
  }
  return true;
}

// inverse <- U⁻¹, upper triangular, from U and `lower`, Uᵀ.
inline void invert(const Panels &u, const Panels &lower, int panels, const Panels &inverse) {
  clear(inverse, panels);
  for (int i = 0; i < panels * kLanes; ++i)
    inverse.at(i, i) = 1.0;
  for (int end = panels; end > 0;) {
    const int outer = (end - 1) / kTriangle * kTriangle;
    product(Sum::subtract, lower, inverse, inverse, {outer, end}, {end, panels},
            [&](int, int j, int width) { return Range{end * kLanes, (j + width) * kLanes}; });
    for (int block = end - 1; block >= outer; --block) {
      product(Sum::subtract, lower, inverse, inverse, {block, block + 1}, {block, panels},
              [&](int, int j, int width) {
                const int stop = j + width < end ? j + width : end;
                return Range{(block + 1) * kLanes, stop * kLanes};
              });
      const Vec *d = u.panel(block) + block * kLanes;
      double pivot[kLanes];
      for (int r = 0; r < kLanes; ++r)
        pivot[r] = 1.0 / d[r][r];
      for (int j = block; j < panels; ++j) {
        Vec *const to = inverse.panel(j) + block * kLanes;
        Vec x[kLanes];
        KOOPCORE_UNROLL
        for (int r = 0; r < kLanes; ++r)
          x[r] = to[r];
        KOOPCORE_UNROLL
        for (int r = kLanes - 1; r >= 0; --r) {
          x[r] = x[r] * pivot[r];
          KOOPCORE_UNROLL
          for (int q = 0; q < r; ++q)
            x[q] -= d[q][r] * x[r];
        }
        KOOPCORE_UNROLL
        for (int r = 0; r < kLanes; ++r)
          to[r] = x[r];
      }
    }
    end = outer;
  }
}

// -- Vectors in registers, as many as there are panels
// ---------------------------------------------

inline double sum_of(const Vec &x) {
  double sum = 0.0;
  for (int lane = 0; lane < kLanes; ++lane)
    sum += x[lane];
  return sum;
}

inline double dot_of(const Vec *x, const Vec *y, int panels) {
  Vec sum{};
  for (int j = 0; j < panels; ++j)
    sum += x[j] * y[j];
  return sum_of(sum);
}

inline double distance_of(const Vec *x, const Vec *y, int panels) {
  Vec sum{};
  for (int j = 0; j < panels; ++j)
    sum += (x[j] - y[j]) * (x[j] - y[j]);
  return Scalar::sqrt(sum_of(sum));
}

// Two registers of out = Aᵀ x at a time, in four sums each that do not wait for one another.
template <int R>
void apply_transposed_panels(const Panels &a, int j, int rows, const double *x, Vec *out) {
  Vec s[R][4] = {};
  int i = 0;
  for (; i + 4 <= rows; i += 4)
    KOOPCORE_UNROLL
  for (int k = 0; k < 4; ++k)
    KOOPCORE_UNROLL
  for (int r = 0; r < R; ++r)
    s[r][k] += x[i + k] * a.panel(j + r)[i + k];
  for (; i < rows; ++i)
    KOOPCORE_UNROLL
  for (int r = 0; r < R; ++r)
    s[r][0] += x[i] * a.panel(j + r)[i];
  for (int r = 0; r < R; ++r)
    out[j + r] = (s[r][0] + s[r][1]) + (s[r][2] + s[r][3]);
}

// out = Aᵀ x for A (panels W, panels W); out is not x.
inline void apply_transposed(const Panels &a, int panels, const Vec *x, Vec *out) {
  const double *numbers = reinterpret_cast<const double *>(x);
  int j = 0;
  for (; j + 2 <= panels; j += 2)
    apply_transposed_panels<2>(a, j, panels * kLanes, numbers, out);
  if (j < panels)
    apply_transposed_panels<1>(a, j, panels * kLanes, numbers, out);
}

// out = A x; out is not x.
inline void apply_panels(const Panels &a, int panels, const Vec *x, Vec *out) {
  for (int i = 0; i < panels; ++i) {
    Vec s[kLanes] = {};
    for (int j = 0; j < panels; ++j)
      KOOPCORE_UNROLL
    for (int r = 0; r < kLanes; ++r)
      s[r] += a.panel(j)[i * kLanes + r] * x[j];
    out[i] = sum_lanes(s);
  }
}

} // namespace

} // namespace koopcore::cpu::KOOPCORE_ISA
