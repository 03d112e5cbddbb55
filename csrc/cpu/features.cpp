// Feature-side moments of W groups at a time, and copies of single snapshots by group.
//
// Mirrors cuda/features.cu.
#include "cpu/accumulate.h"
#include "cpu/kernels.h"

namespace koopcore::cpu::KOOPCORE_ISA {

namespace {

void emit(const MomentsJob &job, int stop, std::int64_t first, int count, const Vec *c,
          const Vec *e) {
  const int m = job.m;
  for (int lane = 0; lane < count; ++lane) {
    double *out = job.out + ((job.stops.slot[stop] * job.groups.count + first + lane) * 2) * m * m;
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
  accumulate<T>(job.window, job.groups, job.affine, job.m, job.stops.ascending, job.stops.count,
                first, count, scratch, [&](int stop, const Moments &sums) {
                  emit(job, stop, first, count, sums.c, sums.e);
                });
}

template <class T> void gather_group(const GatherJob &job, std::int64_t group) {
  for (int r = 0; r < job.window.n; ++r) {
    double *out = job.out + (r * job.groups.count + group) * job.m;
    for (std::int64_t s = job.groups.ptr[group]; s < job.groups.ptr[group + 1]; ++s) {
      const std::ptrdiff_t step = job.window.step * job.groups.stride[s];
      const char *from = job.window.rows[r] + job.window.step * job.groups.start[s];
      for (std::int64_t k = 0; k < job.groups.length[s]; ++k) {
        T x;
        __builtin_memcpy(&x, from + k * step, sizeof x);
        *out++ = x;
      }
    }
  }
}

template <class T> void scatter_group(const ScatterJob &job, std::int64_t group) {
  for (int r = 0; r < job.n_rows; ++r) {
    const double *from = job.values + (r * job.groups.count + group) * job.m;
    for (std::int64_t s = job.groups.ptr[group]; s < job.groups.ptr[group + 1]; ++s) {
      const std::ptrdiff_t step = job.out.step * job.groups.stride[s];
      char *to = job.out.data + r * job.out.row + job.out.step * job.groups.start[s];
      for (std::int64_t k = 0; k < job.groups.length[s]; ++k) {
        double x = *from++;
        x = x > kLargest<T> ? kLargest<T> : x;
        const T one = T(x < -kLargest<T> ? -kLargest<T> : x);
        __builtin_memcpy(to + k * step, &one, sizeof one);
      }
    }
  }
}

} // namespace

std::size_t feature_gram_scratch(const MomentsJob &job) { return accumulation_scratch(job.m); }

void feature_gram_batch(const MomentsJob &job, std::int64_t first, int count, double *scratch) {
  (job.window.is_double ? moments_of<double> : moments_of<float>)(job, first, count, scratch);
}

std::size_t gather_scratch(const GatherJob &) { return 0; }

void gather_batch(const GatherJob &job, std::int64_t first, int count, double *) {
  for (std::int64_t group = first; group < first + count; ++group)
    (job.window.is_double ? gather_group<double> : gather_group<float>)(job, group);
}

std::size_t scatter_scratch(const ScatterJob &) { return 0; }

void scatter_batch(const ScatterJob &job, std::int64_t first, int count, double *) {
  for (std::int64_t group = first; group < first + count; ++group)
    (job.out.is_double ? scatter_group<double> : scatter_group<float>)(job, group);
}

} // namespace koopcore::cpu::KOOPCORE_ISA
