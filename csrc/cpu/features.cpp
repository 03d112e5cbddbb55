// Feature-side moments of W groups at a time, and copies of single snapshots by group.
#include "cpu/kernels.h"
#include "cpu/simd.h"
#include "koopcore/moments.h"

namespace koopcore::cpu::KOOPCORE_ISA {

namespace {

constexpr int kBlockRows = 16; // snapshots that are taken together

// offset[i·W + lane] <- where parameter i of the group in this lane stands in a snapshot, in bytes.
void find_offsets(const Groups &groups, std::ptrdiff_t step, std::int64_t first, int count,
                  std::ptrdiff_t *offset) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const std::int64_t group = first + (lane < count ? lane : 0);
    std::int64_t i = 0;
    for (std::int64_t s = groups.ptr[group]; s < groups.ptr[group + 1]; ++s)
      for (std::int64_t k = 0; k < groups.length[s]; ++k)
        offset[i++ * kLanes + lane] = step * (groups.start[s] + k * groups.stride[s]);
  }
}

template <class T> KOOPCORE_INLINE Vec gather_at(const char *row, const std::ptrdiff_t *offset) {
  Narrow<T> x;
  for (int lane = 0; lane < kLanes; ++lane) {
    T one;
    __builtin_memcpy(&one, row + offset[lane], sizeof one);
    x[lane] = one;
  }
  return widen(x);
}

// y_t for t = t0 … t0 + rows - 1: differences, or reflected snapshots.
template <class T>
void block_of_rows(const MomentsJob &job, const Reflection<SimdLanes> &reflection, const Vec *last,
                   const std::ptrdiff_t *offset, int t0, int rows, Vec *y) {
  const int m = job.m;
  const char *const *row = job.window.rows;
  for (int t = 0; t < rows; ++t) {
    Vec *out = y + t * m;
    if (job.affine) {
      for (int i = 0; i < m; ++i)
        out[i] = gather_at<T>(row[t0 + t + 1], offset + i * kLanes) -
                 gather_at<T>(row[t0 + t], offset + i * kLanes);
    } else {
      for (int i = 0; i < m; ++i)
        out[i] = gather_at<T>(row[t0 + t], offset + i * kLanes) - last[i];
      reflection.apply(out, m);
    }
  }
}

void emit(const MomentsJob &job, int stop, std::int64_t first, int count, const Vec *c,
          const Vec *e) {
  const int m = job.m;
  for (int lane = 0; lane < count; ++lane) {
    double *out = job.out + ((job.slot[stop] * job.groups.count + first + lane) * 2) * m * m;
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < m; ++j) {
        const double entry = (j <= i ? c[i * m + j] : c[j * m + i])[lane];
        out[i * m + j] = entry;
        out[m * m + i * m + j] = entry + e[i * m + j][lane];
      }
  }
}

template <class T>
void moments_of(const MomentsJob &job, std::int64_t first, int count, double *scratch) {
  const int m = job.m;
  Vec *c = reinterpret_cast<Vec *>(scratch), *e = c + m * m, *last = e + m * m, *v = last + m;
  Vec *y = v + m, *change = y + (kBlockRows + 1) * m;
  auto *offset = reinterpret_cast<std::ptrdiff_t *>(change + kBlockRows * m);
  find_offsets(job.groups, job.window.step, first, count, offset);
  Reflection<SimdLanes> reflection{v, Vec{}, Vec{}};
  if (!job.affine) {
    for (int i = 0; i < m; ++i)
      last[i] = gather_at<T>(job.window.rows[job.window.n - 1], offset + i * kLanes);
    reflection.set(last, m);
  }
  for (int i = 0; i < 2 * m * m; ++i)
    c[i] = Vec{};
  int t = 0; // rows summed; y[0] holds row t when `ready`
  bool ready = false;
  for (int stop = 0; stop < job.n_stops; ++stop) {
    const int end = int(job.stops[stop]) - 1 - int(job.affine);
    while (t < end) {
      const int rows = end - t < kBlockRows ? end - t : kBlockRows;
      if (!ready)
        block_of_rows<T>(job, reflection, last, offset, t, 1, y);
      block_of_rows<T>(job, reflection, last, offset, t + 1, rows, y + m);
      for (int i = 0; i < rows * m; ++i)
        change[i] = y[i + m] - y[i];
      add_outer<SimdLanes>(y, y, rows, m, true, c);
      add_outer<SimdLanes>(change, y, rows, m, false, e);
      for (int i = 0; i < m; ++i)
        y[i] = y[rows * m + i];
      ready = true;
      t += rows;
    }
    emit(job, stop, first, count, c, e);
  }
}

template <class T> void gather_group(const GatherJob &job, std::int64_t group) {
  for (int r = 0; r < job.n_rows; ++r) {
    double *out = job.out + (r * job.groups.count + group) * job.m;
    for (std::int64_t s = job.groups.ptr[group]; s < job.groups.ptr[group + 1]; ++s) {
      const std::ptrdiff_t step = job.step * job.groups.stride[s];
      const char *from = job.rows[r] + job.step * job.groups.start[s];
      for (std::int64_t k = 0; k < job.groups.length[s]; ++k) {
        T x;
        __builtin_memcpy(&x, from + k * step, sizeof x);
        *out++ = x;
      }
    }
  }
}

template <class T> void scatter_group(const ScatterJob &job, std::int64_t group) {
  constexpr double limit =
      sizeof(T) == sizeof(float) ? 3.4028234663852886e38 : 1.7976931348623157e308;
  for (int r = 0; r < job.n_rows; ++r) {
    const double *from = job.values + (r * job.groups.count + group) * job.m;
    for (std::int64_t s = job.groups.ptr[group]; s < job.groups.ptr[group + 1]; ++s) {
      const std::ptrdiff_t step = job.step * job.groups.stride[s];
      char *to = job.out + r * job.row + job.step * job.groups.start[s];
      for (std::int64_t k = 0; k < job.groups.length[s]; ++k) {
        double x = *from++;
        x = x > limit ? limit : x;
        const T one = T(x < -limit ? -limit : x);
        __builtin_memcpy(to + k * step, &one, sizeof one);
      }
    }
  }
}

} // namespace

std::size_t moments_scratch(int m) {
  return std::size_t(2 * m * m + 3 * m + (2 * kBlockRows + 1) * m) * kLanes;
}

void moments_batch(const MomentsJob &job, std::int64_t first, int count, double *scratch) {
  (job.window.is_double ? moments_of<double> : moments_of<float>)(job, first, count, scratch);
}

void gather_groups(const GatherJob &job, std::int64_t first, std::int64_t end) {
  for (std::int64_t group = first; group < end; ++group)
    (job.is_double ? gather_group<double> : gather_group<float>)(job, group);
}

void scatter_groups(const ScatterJob &job, std::int64_t first, std::int64_t end) {
  for (std::int64_t group = first; group < end; ++group)
    (job.is_double ? scatter_group<double> : scatter_group<float>)(job, group);
}

} // namespace koopcore::cpu::KOOPCORE_ISA
