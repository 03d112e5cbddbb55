// Predictions x_{n+T} = x_n + B (w - 1): one pass over the snapshots for several horizons.
#include "cpu/kernels.h"
#include "cpu/problem.h"
#include "cpu/simd.h"

#include <cfloat>

namespace koopcore::cpu::KOOPCORE_ISA {

namespace {

// Columns whose snapshots stay in the first-level cache while all horizons are made from them.
constexpr int kBlockBytes = 16384;

template <class U> KOOPCORE_INLINE void store(Vec value, char *p, std::ptrdiff_t step, int count) {
  const double limit = sizeof(U) == sizeof(float) ? double(FLT_MAX) : DBL_MAX;
  value = value > limit ? SimdLanes::broadcast(limit) : value;
  value = value < -limit ? SimdLanes::broadcast(-limit) : value;
  const Narrow<U> x = narrow<U>(value);
  if (count == kLanes && step == sizeof(U)) {
    __builtin_memcpy(p, &x, sizeof x);
    return;
  }
  for (int i = 0; i < count; ++i) {
    const U one = x[i];
    __builtin_memcpy(p + i * step, &one, sizeof one);
  }
}

// H horizons of V vectors of parameters; `weights` (H, n) holds w - 1.
template <class U, int H, int V, class Row>
KOOPCORE_INLINE void predict(int n, const double *weights, Row row, Vec (*out)[V]) {
  Vec previous[V];
  for (int v = 0; v < V; ++v)
    previous[v] = row(0, v);
  for (int h = 0; h < H; ++h)
    for (int v = 0; v < V; ++v)
      out[h][v] = weights[h * n] * previous[v];
  for (int k = 1; k < n; ++k)
    for (int v = 0; v < V; ++v) {
      const Vec current = row(k, v);
      const Vec difference = current - previous[v];
      previous[v] = current;
      for (int h = 0; h < H; ++h)
        out[h][v] += weights[h * n + k] * difference;
    }
  for (int h = 0; h < H; ++h)
    for (int v = 0; v < V; ++v)
      out[h][v] += previous[v];
}

// H horizons of `count` parameters that stand `stride` apart from `first` on.
template <class T, class U, int H>
void combine_run(const CombineJob &job, std::int64_t first, std::int64_t stride, std::int64_t count,
                 int horizon, const double *weights) {
  const Window &w = job.window;
  const std::ptrdiff_t step = w.step * stride, out_step = job.out.step * stride;
  std::ptrdiff_t offset = w.step * first;
  char *out = job.out.data + horizon * job.out.row + job.out.step * first;
  constexpr int V = H <= 2 ? 2 : 1;
  Vec value[H][V];
  if (step == sizeof(T))
    for (; count >= V * kLanes; count -= V * kLanes) {
      predict<U, H, V>(
          w.n, weights,
          [&](int k, int v) {
            if (v * kLanes * sizeof(T) % kPrefetchLine == 0)
              __builtin_prefetch(w.rows[k] + offset + v * kLanes * step + kPrefetchAhead);
            return load<T>(w.rows[k] + offset + v * kLanes * step);
          },
          value);
      for (int h = 0; h < H; ++h)
        for (int v = 0; v < V; ++v)
          store<U>(value[h][v], out + h * job.out.row + v * kLanes * out_step, out_step, kLanes);
      offset += V * kLanes * step;
      out += V * kLanes * out_step;
    }
  while (count > 0) {
    const int some = count < kLanes ? int(count) : kLanes;
    Vec single[H][1];
    if (some == kLanes && step == sizeof(T))
      predict<U, H, 1>(
          w.n, weights, [&](int k, int) { return load<T>(w.rows[k] + offset); }, single);
    else if (step == sizeof(T))
      predict<U, H, 1>(
          w.n, weights, [&](int k, int) { return load_first<T>(w.rows[k] + offset, some); },
          single);
    else
      predict<U, H, 1>(
          w.n, weights, [&](int k, int) { return gather<T>(w.rows[k] + offset, step, some); },
          single);
    for (int h = 0; h < H; ++h)
      store<U>(single[h][0], out + h * job.out.row, out_step, some);
    count -= some;
    offset += some * step;
    out += some * out_step;
  }
}

template <class T, class U>
void combine_of(const CombineJob &job, Piece at, const double *weights) {
  const int n = job.window.n;
  int block = kBlockBytes / int(sizeof(T)) / n / 16 * 16;
  block = block < 32 ? 32 : block;
  for (std::int64_t left = at.count; left > 0;) {
    const std::int64_t stride = job.groups.stride[at.segment];
    const std::int64_t length = job.groups.length[at.segment] - at.within;
    std::int64_t take = left < length ? left : length;
    if (job.n_horizons > 4 && take > block)
      take = block;
    const std::int64_t first = job.groups.start[at.segment] + at.within * stride;
    int h = 0;
    for (; h + 4 <= job.n_horizons; h += 4)
      combine_run<T, U, 4>(job, first, stride, take, h, weights + h * n);
    for (; h + 2 <= job.n_horizons; h += 2)
      combine_run<T, U, 2>(job, first, stride, take, h, weights + h * n);
    if (h < job.n_horizons)
      combine_run<T, U, 1>(job, first, stride, take, h, weights + h * n);
    left -= take;
    at.within += take;
    if (at.within == job.groups.length[at.segment]) {
      ++at.segment;
      at.within = 0;
    }
  }
}

} // namespace

std::size_t combine_scratch(int n, int n_horizons) { return std::size_t(n) * n_horizons; }

void combine_piece(const CombineJob &job, std::int64_t weight_row, Piece piece, double *scratch) {
  const int n = job.window.n;
  for (int h = 0; h < job.n_horizons; ++h) {
    const double *w = job.weights + (h * job.weight_rows + weight_row) * n;
    for (int k = 0; k < n; ++k)
      scratch[h * n + k] = w[k] - 1.0;
  }
  if (job.window.is_double)
    (job.out.is_double ? combine_of<double, double> : combine_of<double, float>)(job, piece,
                                                                                 scratch);
  else
    (job.out.is_double ? combine_of<float, double> : combine_of<float, float>)(job, piece, scratch);
}

} // namespace koopcore::cpu::KOOPCORE_ISA
