// Predictions x_{n+T} = x_n + B (w - 1): one pass over the snapshots for several horizons.
//
// Mirrors cuda/combine.cu. Up to eight horizons are made in registers while the snapshots stream
// by. For more, x_1, the differences and x_n of some columns are converted once, into a panel in
// the second-level cache.
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace koopcore::cpu::KOOPCORE_ISA {

namespace {

constexpr int kPanelBytes = 131072;               // a part of the second-level cache
constexpr int kTileVectors = kLanes == 8 ? 2 : 1; // with eight horizons: what fits into registers
constexpr int kStreamed = 8;                      // horizons made without a panel, at most

template <class U> KOOPCORE_INLINE void store(Vec value, char *p, std::ptrdiff_t step, int count) {
  const Narrow<U> x = narrow<U>(clip<U>(value));
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
template <int H, int V, class Row>
KOOPCORE_INLINE void predict(int n, const double *weights, Row row, Vec (*out)[V]) {
  Vec previous[V], s[H][V];
  KOOPCORE_UNROLL
  for (int v = 0; v < V; ++v)
    previous[v] = row(0, v);
  KOOPCORE_UNROLL
  for (int h = 0; h < H; ++h)
    KOOPCORE_UNROLL
  for (int v = 0; v < V; ++v)
    s[h][v] = weights[h * n] * previous[v];
  for (int k = 1; k < n; ++k) {
    Vec difference[V];
    KOOPCORE_UNROLL
    for (int v = 0; v < V; ++v) {
      const Vec current = row(k, v);
      difference[v] = current - previous[v];
      previous[v] = current;
    }
    KOOPCORE_UNROLL
    for (int h = 0; h < H; ++h)
      KOOPCORE_UNROLL
    for (int v = 0; v < V; ++v)
      s[h][v] += weights[h * n + k] * difference[v];
  }
  KOOPCORE_UNROLL
  for (int h = 0; h < H; ++h)
    KOOPCORE_UNROLL
  for (int v = 0; v < V; ++v)
    out[h][v] = s[h][v] + previous[v];
}

// `count` <= W numbers `step` bytes apart, zeros behind them.
template <class T> KOOPCORE_INLINE Vec load_some(const char *p, std::ptrdiff_t step, int count) {
  if (step != sizeof(T))
    return gather<T>(p, step, count);
  return count == kLanes ? load<T>(p) : load_first<T>(p, count);
}

// A run of parameters that stand equally far apart, in the snapshots and in the output.
struct Run {
  std::ptrdiff_t offset, step; // in bytes, of a snapshot
  char *out;                   // of the first horizon
  std::ptrdiff_t out_step;
  std::int64_t count;

  void advance(int some) {
    offset += some * step;
    out += some * out_step;
    count -= some;
  }
};

// H horizons of V vectors of parameters `step` bytes apart, of which the last has `some`, straight
// from the snapshots.
template <class T, class U, int H, int V>
KOOPCORE_INLINE void stream(const CombineJob &job, const Run &run, std::ptrdiff_t step,
                            const double *weights, int some) {
  Vec value[H][V];
  predict<H, V>(
      job.window.n, weights,
      [&](int k, int v) {
        const char *p = job.window.rows[k] + run.offset + v * kLanes * step;
        if (V > 1 && v * kLanes * sizeof(T) % kPrefetchLine == 0)
          __builtin_prefetch(p + kPrefetchAhead);
        return load_some<T>(p, step, v == V - 1 ? some : kLanes);
      },
      value);
  for (int h = 0; h < H; ++h)
    for (int v = 0; v < V; ++v)
      store<U>(value[h][v], run.out + h * job.out.row + v * kLanes * run.out_step, run.out_step,
               v == V - 1 ? some : kLanes);
}

// H horizons of a run.
template <class T, class U, int H>
void combine_streaming(const CombineJob &job, Run run, const double *weights) {
  constexpr int together = H == 8 ? kTileVectors : 2;
  if (run.step == sizeof(T))
    for (; run.count >= together * kLanes; run.advance(together * kLanes))
      stream<T, U, H, together>(job, run, sizeof(T), weights, kLanes);
  while (run.count > 0) {
    const int some = run.count < kLanes ? int(run.count) : kLanes;
    stream<T, U, H, 1>(job, run, run.step, weights, some);
    run.advance(some);
  }
}

// All horizons of a run, at most kStreamed; snapshots that are read again are in a cache.
template <class T, class U>
void combine_few(const CombineJob &job, Run run, const double *weights) {
  int left = job.n_horizons;
  const auto some = [&](int count, auto &&combine) {
    combine(job, run, weights);
    run.out += count * job.out.row;
    weights += count * job.window.n;
    left -= count;
  };
  if (left == 8)
    some(8, combine_streaming<T, U, 8>);
  if (left >= 4)
    some(4, combine_streaming<T, U, 4>);
  if (left >= 2)
    some(2, combine_streaming<T, U, 2>);
  if (left == 1)
    some(1, combine_streaming<T, U, 1>);
}

// x_1, d_1 … d_{n-1}, x_n of W parameters after the other W.
template <class T> void fill_panel(const Window &w, Run run, Vec *panel) {
  while (run.count > 0) {
    const int some = run.count < kLanes ? int(run.count) : kLanes;
    Vec previous = load_some<T>(w.rows[0] + run.offset, run.step, some);
    *panel++ = previous;
    for (int k = 1; k < w.n; ++k) {
      const char *p = w.rows[k] + run.offset;
      __builtin_prefetch(p + kPrefetchAhead);
      const Vec current = load_some<T>(p, run.step, some);
      *panel++ = current - previous;
      previous = current;
    }
    *panel++ = previous;
    run.advance(some);
  }
}

// H horizons of V vectors of parameters, of which the last has `some`, from their panel.
template <class U, int H, int V>
KOOPCORE_INLINE void predict_tile(int n, const double *weights, const Vec *panel, char *out,
                                  std::ptrdiff_t row, std::ptrdiff_t step, int some) {
  Vec s[H][V];
  KOOPCORE_UNROLL
  for (int h = 0; h < H; ++h)
    KOOPCORE_UNROLL
  for (int v = 0; v < V; ++v)
    s[h][v] = weights[h * n] * panel[v * (n + 1)];
  for (int k = 1; k < n; ++k) {
    Vec difference[V];
    KOOPCORE_UNROLL
    for (int v = 0; v < V; ++v)
      difference[v] = panel[v * (n + 1) + k];
    KOOPCORE_UNROLL
    for (int h = 0; h < H; ++h)
      KOOPCORE_UNROLL
    for (int v = 0; v < V; ++v)
      s[h][v] += weights[h * n + k] * difference[v];
  }
  KOOPCORE_UNROLL
  for (int h = 0; h < H; ++h)
    KOOPCORE_UNROLL
  for (int v = 0; v < V; ++v)
    store<U>(s[h][v] + panel[v * (n + 1) + n], out + h * row + v * kLanes * step, step,
             v == V - 1 ? some : kLanes);
}

// H horizons of `count` parameters from their panel.
template <class U, int H>
void combine_panel(int n, const double *weights, const Vec *panel, char *out, std::ptrdiff_t row,
                   std::ptrdiff_t step, int count) {
  constexpr int together = kTileVectors * kLanes;
  for (; count >= together; count -= together) {
    predict_tile<U, H, kTileVectors>(n, weights, panel, out, row, step, kLanes);
    panel += kTileVectors * (n + 1);
    out += together * step;
  }
  while (count > 0) {
    const int some = count < kLanes ? count : kLanes;
    predict_tile<U, H, 1>(n, weights, panel, out, row, step, some);
    panel += n + 1;
    out += some * step;
    count -= some;
  }
}

int panel_vectors(int n) {
  const int vectors = kPanelBytes / int(sizeof(Vec)) / (n + 1);
  return vectors < 4 ? 4 : vectors;
}

// Runs of several groups whose columns stand side by side in the panel: then each row of the output
// is written in long pieces, one row after the other.
template <class T, class U> class Panel {
public:
  Panel(const CombineJob &job, double *memory)
      : job_(job), memory_(reinterpret_cast<Vec *>(memory)), room_(panel_vectors(job.window.n)) {}

  // `weights` must stay until `write`.
  void add(Run run, const double *weights) {
    while (run.count > 0) {
      if (used_ == room_ || parts_ == kMostParts)
        write();
      Run part = run;
      const std::int64_t most = std::int64_t(room_ - used_) * kLanes;
      part.count = run.count < most ? run.count : most;
      Vec *panel = memory_ + std::ptrdiff_t(used_) * (job_.window.n + 1);
      fill_panel<T>(job_.window, part, panel);
      part_[parts_++] = {run.out, run.out_step, weights, panel, int(part.count)};
      used_ += int((part.count + kLanes - 1) / kLanes);
      run.advance(int(part.count));
    }
  }

  void write() {
    int h = 0;
    for (; h + 8 <= job_.n_horizons; h += 8)
      write_horizons<8>(h);
    for (; h + 2 <= job_.n_horizons; h += 2)
      write_horizons<2>(h);
    if (h < job_.n_horizons)
      write_horizons<1>(h);
    used_ = parts_ = 0;
  }

private:
  static constexpr int kMostParts = 64;

  struct Part {
    char *out;
    std::ptrdiff_t step;
    const double *weights; // (n_horizons, n)
    const Vec *panel;
    int count;
  };

  template <int H> void write_horizons(int h) const {
    const int n = job_.window.n;
    for (int i = 0; i < parts_; ++i) {
      const Part &at = part_[i];
      combine_panel<U, H>(n, at.weights + h * n, at.panel, at.out + h * job_.out.row, job_.out.row,
                          at.step, at.count);
    }
  }

  const CombineJob &job_;
  Vec *memory_; // (room, n + 1)
  int room_;    // in vectors
  int used_ = 0, parts_ = 0;
  Part part_[kMostParts];
};

// Calls take(run) for every run of a piece.
template <class Take> void for_each_run(const CombineJob &job, Piece at, Take &&take) {
  for (std::int64_t left = at.count; left > 0;) {
    const std::int64_t stride = job.groups.stride[at.segment];
    const std::int64_t length = job.groups.length[at.segment] - at.within;
    const std::int64_t count = left < length ? left : length;
    const std::int64_t first = job.groups.start[at.segment] + at.within * stride;
    take(Run{job.window.step * first, job.window.step * stride, job.out.data + job.out.step * first,
             job.out.step * stride, count});
    left -= count;
    ++at.segment;
    at.within = 0;
  }
}

template <class T, class U>
void combine_of(const CombineJob &job, const Piece *pieces, int count, const double *weights,
                double *panel) {
  const std::ptrdiff_t each = std::ptrdiff_t(job.window.n) * job.n_horizons;
  Panel<T, U> together(job, panel);
  for (int i = 0; i < count; ++i) {
    const double *moves = weights + i * each; // w - 1
    for_each_run(job, pieces[i], [&](const Run &run) {
      if (job.n_horizons <= kStreamed)
        combine_few<T, U>(job, run, moves);
      else
        together.add(run, moves);
    });
  }
  together.write();
}

} // namespace

std::size_t combine_scratch(int n, int n_horizons) {
  return std::size_t(n + 1) * panel_vectors(n) * kLanes +
         std::size_t(kPiecesTogether) * n * n_horizons;
}

void combine_pieces(const CombineJob &job, const Piece *pieces, const std::int64_t *weight_rows,
                    int count, double *scratch) {
  const int n = job.window.n;
  double *weights = scratch + std::ptrdiff_t(n + 1) * panel_vectors(n) * kLanes, *to = weights;
  for (int i = 0; i < count; ++i)
    for (int h = 0; h < job.n_horizons; ++h) {
      const double *w = job.weights + (h * job.weight_rows + weight_rows[i]) * n;
      for (int k = 0; k < n; ++k)
        *to++ = w[k] - 1.0;
    }
  const auto of = job.window.is_double
                      ? (job.out.is_double ? combine_of<double, double> : combine_of<double, float>)
                      : (job.out.is_double ? combine_of<float, double> : combine_of<float, float>);
  of(job, pieces, count, weights, scratch);
}

} // namespace koopcore::cpu::KOOPCORE_ISA
