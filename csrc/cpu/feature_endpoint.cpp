// Endpoints of W small groups from operators that were kept: see small_endpoint.h.
#include "cpu/kernels.h"
#include "cpu/small_endpoint.h"
#include "cpu/transposed.h"

namespace koopcore::cpu::KOOPCORE_ISA {

std::size_t feature_endpoint_scratch(int m, int rank, const Horizons &horizons) {
  return (std::size_t(rank * rank + rank + m * rank + 3 * m) +
          small_endpoint_work(m, rank, horizons)) *
         kLanes;
}

void feature_endpoint_batch(const FeatureEndpointJob &job, std::int64_t first, int count,
                            double *scratch) {
  const int m = job.m, r = job.rank;
  Vec *k = reinterpret_cast<Vec *>(scratch), *z = k + r * r, *readout = z + r;
  Vec *last = readout + m * r, *v = last + m;
  auto *from = reinterpret_cast<std::ptrdiff_t *>(v + m);
  to_lanes(job.operators + first * r * r, r * r, count, r * r, k);
  to_lanes(job.start + first * r, r, count, r, z);
  to_lanes(job.readout + first * m * r, m * r, count, m * r, readout);
  find_offsets(job.groups, job.window.step, first, count, from);
  const char *newest = job.window.rows[job.window.n - 1];
  for (int i = 0; i < m; ++i)
    last[i] = job.window.is_double ? gather_at<double>(newest, from + i * kLanes)
                                   : gather_at<float>(newest, from + i * kLanes);
  SmallOperators of{m, r, job.affine, k, z, readout, last, {v, Vec{}, Vec{}}};
  of.reflection.set(last, m);
  write_endpoints(of, job.groups, first, count, job.horizons, job.out, v + 2 * m);
}

} // namespace koopcore::cpu::KOOPCORE_ISA
