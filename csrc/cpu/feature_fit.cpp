// The whole fit of W small groups while their matrices are in the cache, and their endpoints.
//
// What feature_gram, project, rollout_dense and the read-out do one after the other. cuda/ has no
// counterpart: there these stages stay apart (cuda/features.cu, cuda/project.cu).
#include "algorithms/dense_rollout.h"
#include "algorithms/second_pass.h"
#include "cpu/accumulate.h"
#include "cpu/kernels.h"

namespace koopcore::cpu::KOOPCORE_ISA {

namespace {

// Operators of groups of m parameters and rank at most r, one group per lane.
struct SmallOperators {
  int m, r;
  bool affine;
  const Vec *k, *z, *readout;       // (r, r), (r), (m, r)
  const Vec *last;                  // (m) x_n
  Reflection<SimdLanes> reflection; // of the linear model
};

std::size_t endpoint_work(int m, int r, const Horizons &horizons) {
  const int levels = dense_rollout_levels(r, horizons.ascending, horizons.count);
  return std::size_t(2 * m + dense_rollout_work(r, levels));
}

// The columns of W groups of one row of the output, kept finite.
template <class T>
void store_columns(const Vec *values, const std::ptrdiff_t *offset, int m, int count, char *row) {
  for (int i = 0; i < m; ++i) {
    const Narrow<T> narrowed = narrow<T>(clip<T>(values[i]));
    for (int lane = 0; lane < count; ++lane) {
      const T one = narrowed[lane];
      __builtin_memcpy(row + offset[i * kLanes + lane], &one, sizeof one);
    }
  }
}

// x_{n+T} of the first `count` lanes at every horizon. A lane that diverged, whose state grew past
// kWeightLimit, is given its last snapshot. work: endpoint_work.
void write_endpoints(const SmallOperators &of, const Groups &groups, std::int64_t first, int count,
                     const Horizons &horizons, const Output &out, Vec *work) {
  const int m = of.m, r = of.r;
  Vec *y = work;
  auto *to = reinterpret_cast<std::ptrdiff_t *>(y + m);
  find_offsets(groups, out.step, first, count, to);
  const int levels = dense_rollout_levels(r, horizons.ascending, horizons.count);
  const Vec limit = SimdLanes::broadcast(kWeightLimit);
  const auto emit = [&](int h, const Vec *state, const Vec &) {
    IntVec diverged{};
    for (int i = 0; i < r; ++i)
      diverged |= ~(SimdLanes::abs(state[i]) <= limit); // a NaN too
    apply<SimdLanes>(of.readout, m, r, state, y);
    Vec along{};
    if (!of.affine)
      for (int i = 0; i < m; ++i)
        along += y[i] * of.reflection.v[i];
    along *= of.reflection.twice;
    for (int i = 0; i < m; ++i) {
      const Vec moved = of.affine ? y[i] + of.last[i] : y[i] - along * of.reflection.v[i];
      y[i] = diverged ? of.last[i] : moved;
    }
    char *row = out.data + horizons.slot[h] * out.row;
    (out.is_double ? store_columns<double> : store_columns<float>)(y, to, m, count, row);
  };
  rollout_dense<SimdLanes>(of.k, of.z, r, of.affine, false, horizons.ascending, horizons.count,
                           levels, work + 2 * m, emit);
}

struct FitWork {
  Vec *h, *k, *readout, *v;                      // (m, m)
  Vec *g, *z, *held, *state, *predicted, *probe; // (m)
  Vec *rest;
};

constexpr int kMostHoldoutLevels = 8;

// Of a second pass: V of the first one, vectors, what the fit needs, and the sums.
std::size_t refit_work(int m) {
  return std::size_t(m * m + 3 * m + second_pass_work(m)) + basis_scratch(m) / kLanes;
}

// What the rollouts and the first pass need.
std::size_t stage_work(int m, const Horizons &horizons) {
  const std::size_t parts[] = {std::size_t(dense_rollout_work(m, kMostHoldoutLevels)),
                               std::size_t(projection_work(m)), endpoint_work(m, m, horizons)};
  std::size_t most = 0;
  for (std::size_t part : parts)
    most = part > most ? part : most;
  return most;
}

std::size_t fit_work(int m, bool again, const Horizons &horizons) {
  return std::size_t(4 * m * m + 6 * m) + stage_work(m, horizons) + (again ? refit_work(m) : 0);
}

FitWork share_out(Vec *at, int m) {
  FitWork work{};
  Vec **const squares[] = {&work.h, &work.k, &work.readout, &work.v};
  Vec **const vectors[] = {&work.g, &work.z, &work.held, &work.state, &work.predicted, &work.probe};
  for (Vec **square : squares) {
    *square = at;
    at += m * m;
  }
  for (Vec **vector : vectors) {
    *vector = at;
    at += m;
  }
  work.rest = at;
  return work;
}

// H from the sums; A is `sums.c`, of which the lower triangle is enough.
void unpack_sums(const Moments &sums, int m, Vec *h) {
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j <= i; ++j)
      h[i * m + j] = sums.c[i * m + j] + sums.e[i * m + j];
    for (int j = i + 1; j < m; ++j)
      h[i * m + j] = sums.c[j * m + i] + sums.e[i * m + j];
  }
}

// Whether squares c_ii say enough of the numbers they are of (`out_of_range` in
// backends/protocol.py).
IntVec in_range(const Vec *c, int m) {
  Vec largest{};
  for (int i = 0; i < m; ++i)
    largest = SimdLanes::max(largest, c[i * m + i]);
  return SimdLanes::both(largest > kLeastSquare, largest < kGreatestSquare);
}

Vec norm_of_difference(const Vec *a, const Vec *b, int m) {
  Vec square{};
  for (int i = 0; i < m; ++i)
    square += (a[i] - b[i]) * (a[i] - b[i]);
  return SimdLanes::sqrt(square);
}

// The relative error of predicting the newest snapshot from the shorter window, whose fit `work`
// is.
template <class T> Vec hindcast_of(const FeatureFitJob &job, const Moments &sums, FitWork &work) {
  const int m = job.m;
  const std::int64_t horizon = job.holdout;
  int levels = dense_rollout_levels(m, &horizon, 1);
  levels = levels < kMostHoldoutLevels ? levels : kMostHoldoutLevels;
  rollout_dense<SimdLanes>(work.k, work.z, m, job.affine, false, &horizon, 1, levels, work.rest,
                           [&](int, const Vec *state, const Vec &) {
                             apply<SimdLanes>(work.readout, m, m, state, work.predicted);
                           });
  const char *held_row = job.window.rows[job.window.n - job.holdout - 1];
  Vec movement{};
  for (int i = 0; i < m; ++i) { // x_{n-holdout} - x_n
    work.held[i] = gather_at<T>(held_row, sums.offset + i * kLanes) - sums.last[i];
    movement += work.held[i] * work.held[i];
    work.state[i] = -work.held[i];
    if (!job.affine) // H x_n
      work.state[i] = sums.last[i] - sums.reflection.size * sums.reflection.v[i];
  }
  const Vec missed = norm_of_difference(work.predicted, work.state, m);
  return movement > 0.0 ? missed / SimdLanes::sqrt(movement) : Vec{};
}

// The fit of a window of `columns` by its moments alone; work.probe <- Vᵀ of itself where `last`.
// Returns the rank. With columns to spare few groups are deficient: natural order leaves the
// others, of rank 0, to a second pass.
Vec fit_by_moments(const FeatureFitJob &job, const Moments &sums, int columns, bool last,
                   Vec &condition, FitWork &work) {
  const int m = job.m;
  unpack_sums(sums, m, work.h);
  const bool wanted = last && job.operators != nullptr;
  const ProjectionArrays<SimdLanes> arrays{sums.c,
                                           work.h,
                                           work.g,
                                           work.k,
                                           work.z,
                                           work.readout,
                                           wanted ? work.v : nullptr,
                                           last ? work.probe : nullptr};
  if (columns > m)
    return project_natural<SimdLanes>(m, 0.0, arrays, condition, work.rest);
  const ProjectionModel model{m, columns < m ? columns : 0, 0.0, false};
  return project<SimdLanes>(model, arrays, condition, work.rest);
}

// Whether moments of a float32 window resolve too little beside the newest step (`reach` and UNSURE
// in backends/second_pass.py).
template <class T>
IntVec loses_step(const FeatureFitJob &job, const Moments &sums, const Vec &condition) {
  Vec movement{}, step{};
  for (int i = 0; i < job.m; ++i) {
    const Vec moved = sums.last[i] - gather_at<T>(job.window.rows[0], sums.offset + i * kLanes);
    const Vec newest = job.affine ? sums.newest[i] : sums.change[i];
    movement += moved * moved;
    step += newest * newest;
  }
  const double steps = 2.0 * double(job.window.n - 1);
  return condition * condition * movement * 0x1p-53 > step * (steps * steps * 0x1p-6);
}

void put_operators(const FeatureFitJob &job, const FitWork &work, std::int64_t first, int count) {
  const int m = job.m, matrix = m * m;
  from_lanes(work.k, matrix, count, matrix, job.operators + first * matrix);
  from_lanes(work.v, matrix, count, matrix, job.whitener + first * matrix);
  from_lanes(work.readout, matrix, count, matrix, job.readout + first * matrix);
  from_lanes(work.z, m, count, m, job.start + first * m);
}

// What a fit of the whole window says of its groups, and what was asked of it. work.probe: Vᵀf, f
// the newest column of F.
void put_fit(const FeatureFitJob &job, const Moments &sums, std::int64_t first, int count,
             const Vec &rank, const Vec &condition, const Vec &hindcast, FitWork &work) {
  const int m = job.m;
  apply<SimdLanes>(work.readout, m, m, work.probe, work.predicted);
  Vec residual = norm_of_difference(work.predicted, sums.newest, m);
  if (job.ranged)
    residual = in_range(sums.c, m) ? residual : Vec{} + __builtin_nan("");
  for (int lane = 0; lane < count; ++lane) {
    job.ranks[first + lane] = std::int64_t(rank[lane]);
    job.condition[first + lane] = condition[lane];
    job.residual[first + lane] = residual[lane];
    job.hindcast[first + lane] = hindcast[lane];
  }
  if (job.operators != nullptr)
    put_operators(job, work, first, count);
  if (job.horizons.count > 0)
    write_endpoints({m, m, job.affine, work.k, work.z, work.readout, sums.last, sums.reflection},
                    job.groups, first, count, job.horizons, job.out, work.rest);
}

// The windows of a fit: the one that the hindcast sees, if there is one, and the whole.
struct Stops {
  explicit Stops(const FeatureFitJob &job)
      : shorter(job.window.n - job.holdout), affine(job.affine),
        count(shorter - 1 - int(job.affine) >= 1 ? 2 : 1) {
    at[0] = count == 2 ? shorter : job.window.n;
    at[1] = job.window.n;
  }
  bool is_whole(int stop) const { return stop == count - 1; }
  int columns(int stop) const { return int(at[stop]) - 1 - int(affine); }

  std::int64_t shorter;
  bool affine;
  int count;
  std::int64_t at[2];
};

template <class T>
void fit_of(const FeatureFitJob &job, std::int64_t first, int count, double *scratch) {
  const int m = job.m;
  const Stops stops(job);
  FitWork work = share_out(reinterpret_cast<Vec *>(scratch + accumulation_scratch(m)), m);
  Vec error = Vec{} + __builtin_nan(""), sure = Vec{} + 1.0; // 0: the shorter window was not fitted
  const auto after = [&](int stop, const Moments &sums) {
    for (int i = 0; i < m; ++i) {
      work.g[i] = sums.newest[i];
      work.probe[i] = sums.newest[i] - sums.change[i]; // the newest column of F
    }
    Vec condition;
    const int columns = stops.columns(stop);
    const bool whole = stops.is_whole(stop);
    const Vec rank = fit_by_moments(job, sums, columns, whole, condition, work);
    if (!whole) {
      error = hindcast_of<T>(job, sums, work);
      if (columns > m)
        sure = rank;
      return;
    }
    const IntVec known = SimdLanes::both(sure > 0.0, ~loses_step<T>(job, sums, condition));
    put_fit(job, sums, first, count, known ? rank : Vec{}, condition, error, work);
  };
  accumulate<T>(job.window, job.groups, job.affine, m, stops.at, stops.count, first, count, scratch,
                after);
}

// By a second pass in the basis that the moments of the whole window find.
template <class T>
void refit_of(const FeatureFitJob &job, std::int64_t first, int count, double *scratch) {
  const int m = job.m, matrix = m * m;
  const Stops stops(job);
  FitWork work = share_out(reinterpret_cast<Vec *>(scratch + accumulation_scratch(m)), m);
  Vec *v = work.rest + stage_work(m, job.horizons), *held = v + matrix;
  Vec *squares = held + m, *rest = squares + 2 * m;
  auto *basis = reinterpret_cast<double *>(rest + second_pass_work(m));
  Vec error = Vec{} + __builtin_nan(""), condition;
  const ProjectionArrays<SimdLanes> to{nullptr, nullptr,      work.g, work.k,
                                       work.z,  work.readout, work.v, nullptr};
  const auto after = [&](int stop, const Moments &sums) {
    for (int i = 0; i < m; ++i)
      squares[stop * m + i] = sums.c[i * m + i];
    if (!stops.is_whole(stop)) {
      for (int i = 0; i < m; ++i)
        held[i] = sums.newest[i];
      return;
    }
    const bool natural = job.window.is_double; // of float32 only few directions would stand it
    first_basis<SimdLanes>(sums.c, m, natural, v, condition, rest);
    const auto refitted = [&](int at, Vec *in_basis) {
      const bool whole = stops.is_whole(at);
      for (int i = 0; i < m; ++i)
        work.g[i] = whole ? sums.newest[i] : held[i];
      // With fewer columns than parameters the rank is theirs, whatever rounding adds.
      int most = stops.columns(at);
      most = job.rank > 0 && job.rank < most ? job.rank : most;
      const BasisSums<SimdLanes> of{in_basis, in_basis + matrix, in_basis + 2 * matrix};
      const Vec rank = refit<SimdLanes>(squares + at * m, of, m, most < m ? most : m, v, to, rest);
      if (!whole) {
        error = hindcast_of<T>(job, sums, work);
        return;
      }
      for (int i = 0; i < m; ++i)
        work.state[i] = sums.newest[i] - sums.change[i]; // the newest column of F
      multiply<SimdLanes, Left::transposed>(work.v, work.state, m, m, 1, work.probe);
      put_fit(job, sums, first, count, rank, condition, error, work);
    };
    accumulate_in_basis<T>(job.window, job.affine, m, stops.at, stops.count, sums, v, basis,
                           refitted);
  };
  accumulate<T>(job.window, job.groups, job.affine, m, stops.at, stops.count, first, count, scratch,
                after);
}

// -- Long windows: the basis from some rows, the sums from all, in spans of rows
// -------------------
//
// A lane is a group and a part of the span's rows: of fewer than W groups each has several lanes,
// whose sums are added in the end. What a span's sums are does not depend on threads.

constexpr int kMostSkipped = 16;  // of so many rows one is enough for a basis
constexpr int kRowsForBasis = 16; // times m rows, at least
constexpr int kRowsAhead = 24;    // fetched before they are summed
constexpr int kSamplesAhead = 8;  // of the rows for the basis
constexpr double kNoise =
    0x1p20; // a direction of 1/kNoise of its column: maybe rounding, not motion
// Of the sums in the basis: what rounding of fewer rows, or of other rows, may have left of 1.
constexpr double kFarFromOne = 1024.0;

// Groups that have lanes of their own: a power of two, `count` at least.
int lanes_apart(int count) {
  int apart = 1;
  while (apart < count)
    apart *= 2;
  return apart;
}

// v with every lane in the place of the one `Step` before it, around the end.
template <int Step> Vec turned(const Vec &v) {
  static_assert(kLanes == 8 || kLanes == 4 || kLanes == 2, "as many places as below");
#define KOOPCORE_PLACE(lane) ((lane) + Step) % kLanes
#if defined(__AVX512F__)
  return __builtin_shufflevector(v, v, KOOPCORE_PLACE(0), KOOPCORE_PLACE(1), KOOPCORE_PLACE(2),
                                 KOOPCORE_PLACE(3), KOOPCORE_PLACE(4), KOOPCORE_PLACE(5),
                                 KOOPCORE_PLACE(6), KOOPCORE_PLACE(7));
#elif defined(__AVX2__)
  return __builtin_shufflevector(v, v, KOOPCORE_PLACE(0), KOOPCORE_PLACE(1), KOOPCORE_PLACE(2),
                                 KOOPCORE_PLACE(3));
#else
  return __builtin_shufflevector(v, v, KOOPCORE_PLACE(0), KOOPCORE_PLACE(1));
#endif
#undef KOOPCORE_PLACE
}

// Adds the lanes of each group and gives all of them the sum.
void add_copies(Vec *sums, int size, int apart) {
  for (int i = 0; i < size; ++i) {
    if (apart <= 4 && kLanes > 4)
      sums[i] += turned<4>(sums[i]);
    if (apart <= 2 && kLanes > 2)
      sums[i] += turned<2>(sums[i]);
    if (apart <= 1)
      sums[i] += turned<1>(sums[i]);
  }
}

// u·cond², the share that rounding of moments may have of their smallest direction: where it is
// less in all lanes, a span sums moments, and not products in the basis (UNSURE in
// backends/second_pass.py, for float32 a quarter of it).
constexpr double kPlainFloat = 0x1p-8 * 0x1p53, kPlainDouble = 0x1p-40 * 0x1p53;

// What is known of W groups before their sums: x_n, the reflection, the basis V and its way back.
struct LongBasis {
  Vec *last, *v, *whitener, *back, *twice, *size, *condition, *sure, *plain;
  Vec *noise; // 1 for the columns of V that may be of rounding

  LongBasis(double *memory, int m) {
    last = reinterpret_cast<Vec *>(memory);
    v = last + m;
    whitener = v + m;
    back = whitener + m * m;
    twice = back + m * m;
    size = twice + 1;
    condition = size + 1;
    sure = condition + 1;
    plain = sure + 1;
    noise = plain + 1;
  }
  Reflection<SimdLanes> reflection() const { return {v, *twice, *size}; }
  bool by_moments() const { return (*plain)[0] > 0.0; }
};

// The rows y_t of W lanes, from rows of their own on.
template <class T> class SpanRows {
public:
  SpanRows(const FeatureFitJob &job, const GroupRows<T> &groups, const LongBasis &basis,
           const std::int64_t *start, Vec *raw, const std::int64_t *fetched = nullptr)
      : job_(job), groups_(groups), basis_(basis), reflection_(basis.reflection()), raw_(raw) {
    together_ = true;
    for (int lane = 0; lane < kLanes; ++lane) {
      row_[lane] = start[lane];
      fetched_[lane] = fetched != nullptr ? fetched[lane] : start[lane] + kRowsAhead;
      together_ &= start[lane] == start[0];
    }
    if (job.affine)
      next(raw_);
  }

  void take(Vec *out) {
    next(out);
    const int m = job_.m;
    if (job_.affine) {
      for (int i = 0; i < m; ++i) {
        const Vec current = out[i];
        out[i] = current - raw_[i];
        raw_[i] = current;
      }
      return;
    }
    reflection_.apply(basis_.last, out, m);
  }

private:
  const char *at(std::int64_t row) const {
    const std::int64_t newest = job_.window.n - 1;
    return job_.window.rows[row < newest ? row : newest];
  }

  void next(Vec *out) {
    if (together_) {
      return groups_.take(at(row_[0]++), at(fetched_[0]++), out);
    }
    std::ptrdiff_t row[kLanes], ahead[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      row[lane] = reinterpret_cast<std::ptrdiff_t>(at(row_[lane]++));
      ahead[lane] = reinterpret_cast<std::ptrdiff_t>(at(fetched_[lane]++));
    }
    groups_.take(row, ahead, out);
  }

  const FeatureFitJob &job_;
  const GroupRows<T> &groups_;
  const LongBasis &basis_;
  Reflection<SimdLanes> reflection_;
  Vec *raw_;
  std::int64_t row_[kLanes], fetched_[kLanes];
  bool together_;
};

template <class T>
void sample_basis(const FeatureFitJob &job, std::int64_t first, int count, double *memory,
                  double *scratch) {
  const int m = job.m, matrix = m * m;
  const LongBasis basis(memory, m);
  Vec *c = reinterpret_cast<Vec *>(scratch), *y = c + matrix, *raw = y + m, *work = raw + m;
  auto *offset = reinterpret_cast<std::ptrdiff_t *>(work + first_basis_work(m));
  find_offsets(job.groups, job.window.step, first, count, offset);
  const int apart = lanes_apart(count), copies = kLanes / apart;
  for (int lane = count; lane < kLanes; ++lane) // the first groups again
    for (int i = 0; i < m; ++i)
      offset[i * kLanes + lane] = offset[i * kLanes + (lane % apart < count ? lane % apart : 0)];
  const GroupRows<T> of_groups(offset, m);
  of_groups.take(job.window.rows[job.window.n - 1], basis.last);
  Reflection<SimdLanes> reflection{basis.v, Vec{}, Vec{}};
  if (!job.affine)
    reflection.set(basis.last, m);
  *basis.twice = reflection.twice;
  *basis.size = reflection.size;
  for (int i = 0; i < matrix; ++i)
    c[i] = Vec{};
  const std::int64_t columns = job.window.n - 1 - int(job.affine);
  std::int64_t skip = columns / (kRowsForBasis * m);
  skip = skip < 1 ? 1 : skip > kMostSkipped ? kMostSkipped : skip;
  const std::int64_t rows = columns / skip / copies;
  // Not at equal distances, with which some oscillation would be in step.
  const auto sampled = [&](std::int64_t k, std::int64_t *start) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const std::int64_t at = k * copies + lane / apart;
      start[lane] = at * skip + std::int64_t((std::uint32_t(at) * 2654435761u) >> 16) % skip;
    }
  };
  for (std::int64_t k = 0; k < rows; ++k) {
    std::int64_t start[kLanes], fetched[kLanes];
    sampled(k, start);
    sampled(k + kSamplesAhead, fetched);
    SpanRows<T>(job, of_groups, basis, start, raw, fetched).take(y);
    add_outer<SimdLanes>(y, y, 1, m, true, c);
  }
  add_copies(c, matrix, apart);
  first_basis<SimdLanes>(c, m, false, basis.whitener, *basis.condition, work, basis.back);
  for (int k = 0; k < m; ++k) {
    Vec greatest{};
    for (int i = 0; i < m; ++i) {
      const Vec entry = basis.whitener[i * m + k] / SimdLanes::power_of_two_scale(c[i * m + i]);
      greatest = SimdLanes::max(greatest, SimdLanes::abs(entry));
    }
    basis.noise[k] = greatest > kNoise ? Vec{} + 1.0 : Vec{};
  }
  *basis.sure = in_range(c, m) ? Vec{} + 1.0 : Vec{};
  const double most = job.window.is_double ? kPlainDouble : kPlainFloat;
  Vec *before = work, *oldest = before + m; // what sums lose shows beside the newest step (`reach`)
  of_groups.take(job.window.rows[job.window.n - 2], before);
  of_groups.take(job.window.rows[0], oldest);
  const Vec moved = norm_of_difference(basis.last, oldest, m) / (2.0 * (job.window.n - 1));
  const Vec step = norm_of_difference(basis.last, before, m);
  const Vec condition = *basis.condition * (moved > step ? moved : step);
  IntVec far = ~(condition * condition < most * (step * step));
  for (int k = 0; k < m; ++k)
    far |= basis.noise[k] > 0.5;
  *basis.plain = SimdLanes::any(far) ? Vec{} : Vec{} + 1.0;
}

// sums (2, m, m): Σ z zᵀ, of which the lower triangle is enough, and Σ (y' - y) zᵀ over the rows
// `begin` … `end` - 1, z the rows in the basis, or the rows themselves.
template <class T>
void sum_span(const FeatureFitJob &job, std::int64_t first, int count, double *memory,
              std::int64_t begin, std::int64_t end, Vec *sums, double *scratch) {
  const int m = job.m, matrix = m * m;
  const LongBasis basis(memory, m);
  Vec *latest = reinterpret_cast<Vec *>(scratch), *raw = latest + 2 * matrix, *z = raw + m;
  Vec *y = z + kBlockRows * m;
  auto *offset = reinterpret_cast<std::ptrdiff_t *>(y + (2 * kBlockRows + 1) * m);
  find_offsets(job.groups, job.window.step, first, count, offset);
  const int apart = lanes_apart(count), copies = kLanes / apart;
  for (int lane = count; lane < kLanes; ++lane)
    for (int i = 0; i < m; ++i)
      offset[i * kLanes + lane] = offset[i * kLanes + (lane % apart < count ? lane % apart : 0)];
  const GroupRows<T> of_groups(offset, m);
  const std::int64_t each = (end - begin) / copies, left = (end - begin) % copies;
  LongSums all(each + 1, sums, 2 * matrix, latest);
  const auto add = [&](const Vec *rows, const Vec *change, int some, const Vec *share) {
    const Vec *of = z;
    if (!basis.by_moments())
      multiply<SimdLanes, Left::plain>(rows, basis.whitener, some, m, m, z);
    else if (share == nullptr)
      of = rows;
    else
      for (int i = 0; i < some * m; ++i)
        z[i] = rows[i];
    if (share != nullptr)
      for (int i = 0; i < some * m; ++i)
        z[i] = z[i] * *share;
    add_outer<SimdLanes>(of, of, some, m, true, all.latest());
    add_outer<SimdLanes>(change, of, some, m, false, all.latest() + matrix);
  };
  std::int64_t start[kLanes];
  if (each > 0) {
    for (int lane = 0; lane < kLanes; ++lane)
      start[lane] = begin + lane / apart * each;
    RowBlocks<SpanRows<T>> blocks({job, of_groups, basis, start, raw}, m, y);
    blocks.until(
        int(each),
        [&](const Vec *rows, const Vec *change, int some) { add(rows, change, some, nullptr); },
        [&] { all.put_aside(); });
  }
  if (left > 0) { // a row a lane, and no row for some
    Vec share{};
    for (int lane = 0; lane < kLanes; ++lane) {
      const std::int64_t copy = lane / apart;
      share[lane] = copy < left ? 1.0 : 0.0;
      start[lane] = copy < left ? end - left + copy : begin;
    }
    RowBlocks<SpanRows<T>> blocks({job, of_groups, basis, start, raw}, m, y);
    blocks.until(
        1, [&](const Vec *rows, const Vec *change, int some) { add(rows, change, some, &share); },
        [&] { all.put_aside(); });
  }
}

// The fit from the sums of the spans, of which `before` are those of the hindcast's window.
template <class T>
void fit_spans(const FeatureFitJob &job, std::int64_t first, int count, double *memory,
               const Vec *spans, int n_spans, int before, double *scratch) {
  const int m = job.m, matrix = m * m;
  const LongBasis basis(memory, m);
  const Stops stops(job);
  FitWork work = share_out(reinterpret_cast<Vec *>(scratch), m);
  Vec *total = work.rest + stage_work(m, job.horizons), *inner = total + 2 * matrix;
  Vec *change = inner + matrix, *across = change + matrix, *c = across + matrix;
  Vec *newest = c + matrix, *step = newest + m;
  Vec *raw = step + m, *rest = raw + m;
  auto *offset = reinterpret_cast<std::ptrdiff_t *>(rest + second_pass_work(m));
  find_offsets(job.groups, job.window.step, first, count, offset);
  const GroupRows<T> of_groups(offset, m);
  const Moments sums{c, nullptr, basis.last, newest, step, offset, basis.reflection()};
  const ProjectionArrays<SimdLanes> to{nullptr, nullptr,      work.g, work.k,
                                       work.z,  work.readout, work.v, nullptr};
  for (int i = 0; i < 2 * matrix; ++i)
    total[i] = Vec{};
  Vec error = Vec{} + __builtin_nan("");
  int done = 0;
  for (int stop = 0; stop < stops.count; ++stop) {
    const bool whole = stops.is_whole(stop);
    for (; done < (whole ? n_spans : before); ++done)
      for (int i = 0; i < 2 * matrix; ++i)
        total[i] += spans[done * 2 * matrix + i];
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < m; ++j)
        inner[i * m + j] = total[j <= i ? i * m + j : j * m + i];
    for (int i = 0; i < matrix; ++i)
      change[i] = total[matrix + i];
    add_copies(inner, matrix, lanes_apart(count));
    add_copies(change, matrix, lanes_apart(count));
    if (basis.by_moments()) { // into the basis now
      for (int i = 0; i < m; ++i)
        c[i * m + i] = inner[i * m + i];
      multiply<SimdLanes, Left::plain>(inner, basis.whitener, m, m, m, across);
      multiply<SimdLanes, Left::transposed>(basis.whitener, across, m, m, m, inner);
      multiply<SimdLanes, Left::plain>(change, basis.whitener, m, m, m, rest);
      for (int i = 0; i < matrix; ++i)
        change[i] = rest[i];
    } else {
      multiply<SimdLanes, Left::plain>(basis.back, inner, m, m, m, across);
    }
    for (int i = 0; i < m && !basis.by_moments(); ++i) {
      Vec square{};
      for (int k = 0; k < m; ++k)
        square += across[i * m + k] * basis.back[i * m + k];
      c[i * m + i] = square;
    }
    std::int64_t start[kLanes];
    for (int lane = 0; lane < kLanes; ++lane)
      start[lane] = stops.columns(stop) - 1;
    SpanRows<T> rows(job, of_groups, basis, start, raw);
    rows.take(step);
    rows.take(newest);
    for (int i = 0; i < m; ++i) {
      step[i] = newest[i] - step[i];
      work.g[i] = newest[i];
    }
    Vec sure = *basis.sure;
    if (whole) { // whether the rows that the basis is of speak for all
      inverse_root<SimdLanes>(inner, m, work.k, rest);
      Vec greatest{}, inverse{};
      for (int i = 0; i < m; ++i) {
        const Vec root = work.k[i * m + i], own = inner[i * m + i];
        greatest = greatest > own ? greatest : own;
        const IntVec noise = basis.noise[i] > 0.5;
        sure = SimdLanes::select(root > 0.0, sure, SimdLanes::select(noise, sure, Vec{}));
        inverse = SimdLanes::select(noise, inverse, SimdLanes::max(inverse, root * root));
      }
      sure = greatest * inverse < kFarFromOne ? sure : Vec{};
    }
    const BasisSums<SimdLanes> of{inner, across, change};
    Vec *squares = raw;
    for (int i = 0; i < m; ++i)
      squares[i] = c[i * m + i];
    const Vec rank = refit<SimdLanes>(squares, of, m, m, basis.whitener, to, rest);
    if (!whole) {
      error = hindcast_of<T>(job, sums, work);
      continue;
    }
    for (int i = 0; i < m; ++i)
      work.state[i] = newest[i] - step[i]; // the newest column of F
    multiply<SimdLanes, Left::transposed>(work.v, work.state, m, m, 1, work.probe);
    put_fit(job, sums, first, count, sure > 0.0 ? rank : Vec{}, *basis.condition, error, work);
  }
}

} // namespace

std::size_t long_basis_size(int m) { return std::size_t(2 * m * m + 3 * m + 5) * kLanes; }
std::size_t span_sums_size(int m) { return std::size_t(2 * m * m) * kLanes; }

std::size_t long_scratch(const FeatureFitJob &job) {
  const int m = job.m, matrix = m * m;
  const std::size_t summing = std::size_t(2 * matrix + (3 * kBlockRows + 4) * m);
  const std::size_t fitting = std::size_t(4 * matrix + 6 * m) + stage_work(m, job.horizons) +
                              std::size_t(6 * matrix + 3 * m + second_pass_work(m) + m);
  const std::size_t sampling = std::size_t(matrix + 3 * m + first_basis_work(m));
  std::size_t most = summing > fitting ? summing : fitting;
  most = sampling > most ? sampling : most;
  return most * kLanes;
}

void long_basis(const FeatureFitJob &job, std::int64_t first, int count, double *basis,
                double *scratch) {
  (job.window.is_double ? sample_basis<double> : sample_basis<float>)(job, first, count, basis,
                                                                      scratch);
}

void span_sums(const FeatureFitJob &job, std::int64_t first, int count, double *basis,
               std::int64_t begin, std::int64_t end, double *sums, double *scratch) {
  (job.window.is_double ? sum_span<double> : sum_span<float>)(job, first, count, basis, begin, end,
                                                              reinterpret_cast<Vec *>(sums),
                                                              scratch);
}

void long_fit(const FeatureFitJob &job, std::int64_t first, int count, double *basis,
              const double *sums, int n_spans, int before, double *scratch) {
  (job.window.is_double ? fit_spans<double> : fit_spans<float>)(job, first, count, basis,
                                                                reinterpret_cast<const Vec *>(sums),
                                                                n_spans, before, scratch);
}

std::size_t feature_fit_scratch(const FeatureFitJob &job) {
  return accumulation_scratch(job.m) +
         fit_work(job.m, job.passes == Passes::second, job.horizons) * kLanes;
}

void feature_fit_batch(const FeatureFitJob &job, std::int64_t first, int count, double *scratch) {
  if (job.passes == Passes::second)
    (job.window.is_double ? refit_of<double> : refit_of<float>)(job, first, count, scratch);
  else
    (job.window.is_double ? fit_of<double> : fit_of<float>)(job, first, count, scratch);
}

std::size_t feature_endpoint_scratch(const FeatureEndpointJob &job) {
  const int m = job.m, r = job.rank;
  return (std::size_t(r * r + r + m * r + 3 * m) + endpoint_work(m, r, job.horizons)) * kLanes;
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
