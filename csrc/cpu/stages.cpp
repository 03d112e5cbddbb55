// The stages of the companion side over raw pointers: tasks and threads; the kernels do the
// arithmetic.
#include "cpu/stages.h"

#include "algorithms/lanes.h"
#include "cpu/plan.h"

#include <cmath>
#include <memory>
#include <numeric>
#include <vector>

namespace koopcore::cpu {

namespace {

constexpr int kMostLanes = kPiecesTogether;

constexpr std::size_t round_up(std::size_t doubles) { return (doubles + 7) / 8 * 8; }

// Estimates of the work, in nanoseconds of one core; they only decide about threads.
double gram_work(double parameters, double n) { return parameters * n * (0.06 + 0.008 * n); }
double solve_work(double groups, double n) { return groups * n * n * (0.5 + 0.05 * n); }

Piece whole_group(const Groups &groups, std::int64_t group) {
  return {groups.ptr[group], 0, group_size(groups, group)};
}

// Gram entries of every part of the large groups, summed into the first part of each group.
std::vector<double> gram_of_parts(const Kernels &kernels, const Window &window,
                                  const Groups &groups, const Plan &plan, std::size_t entries) {
  std::vector<double> sums(plan.parts.size() * entries);
  if (plan.parts.empty())
    return sums;
  for_each_task(std::int64_t(plan.parts.size()), gram_work(double(plan.parameters), window.n),
                kernels.gram_scratch(window.n), [&](std::int64_t part, double *scratch) {
                  kernels.gram_piece(window, groups, plan.parts[part].piece, &sums[part * entries],
                                     scratch);
                });
  for (std::size_t part = 1; part < plan.parts.size(); ++part) {
    const std::int64_t group = plan.parts[part].group;
    const std::size_t first = plan.first_part[group];
    if (first != part)
      for (std::size_t i = 0; i < entries; ++i)
        sums[first * entries + i] += sums[part * entries + i];
  }
  return sums;
}

// Calls batch(first, count, lanes, rest of scratch) for all groups, W at a time, with their packed
// Gram matrices in cache, one group per lane: lanes (n(n+1)/2, W).
template <class Batch>
void for_each_batch(const Kernels &kernels, const Window &window, const Groups &groups,
                    const Plan &plan, double extra_work, std::size_t extra_scratch, Batch &&batch) {
  const int n = window.n, lanes = kernels.lanes, entries = kernels.gram_entries(n);
  std::vector<std::int32_t> map(entries);
  kernels.gram_map(n, map.data());
  const std::vector<double> parts = gram_of_parts(kernels, window, groups, plan, entries);
  const std::size_t summing = round_up(kernels.gram_scratch(n));
  const std::size_t apart = round_up(std::size_t(entries) * lanes);
  const std::size_t together = round_up(std::size_t(packed_size(n)) * lanes);
  const double work = extra_work + (plan.parts.empty() ? gram_work(double(plan.parameters), n) : 0);
  const auto take = [&](std::int64_t first, int count, double *scratch) {
    double *memory = scratch + summing, *gram = memory + apart;
    if (count == lanes && kernels.gram_lanes(window, groups, first, map.data(), gram, scratch))
      return;
    const double *of_lane[kMostLanes];
    for (int lane = 0; lane < lanes; ++lane) {
      const std::int64_t group = first + lane;
      of_lane[lane] = lane < count ? memory + std::ptrdiff_t(lane) * entries : of_lane[0];
      if (lane < count && plan.is_large(group))
        of_lane[lane] = &parts[plan.first_part[group] * entries];
      else if (lane < count)
        kernels.gram_piece(window, groups, whole_group(groups, group),
                           memory + std::ptrdiff_t(lane) * entries, scratch);
    }
    kernels.interleave(of_lane, map.data(), entries, gram);
  };
  for_each_task(std::int64_t(plan.ranges.size()) - 1, work,
                summing + apart + together + extra_scratch,
                [&](std::int64_t task, double *scratch) {
                  double *gram = scratch + summing + apart;
                  const std::int64_t end = plan.ranges[task + 1];
                  for (std::int64_t first = plan.ranges[task]; first < end; first += lanes) {
                    const int count = int(std::min<std::int64_t>(lanes, end - first));
                    take(first, count, scratch);
                    batch(first, count, gram, gram + together);
                  }
                });
}

} // namespace

void gram(const Kernels &kernels, const Window &window, const Groups &groups, double *out) {
  const int entries = packed_size(window.n);
  for_each_batch(kernels, window, groups, make_plan(groups, kernels.lanes), 0.0, 0,
                 [&](std::int64_t first, int count, const double *lanes, double *) {
                   kernels.separate(lanes, entries, count, out + first * entries);
                 });
}

void solve(const Kernels &kernels, const double *gram, std::int64_t groups, const SolveJob &job) {
  const int size = packed_size(job.n), lanes = kernels.lanes;
  std::vector<std::int32_t> identity(size);
  std::iota(identity.begin(), identity.end(), 0);
  const std::int64_t per_task = kBatchesPerTask * lanes;
  const std::size_t together = round_up(std::size_t(size) * lanes);
  for_each_task((groups + per_task - 1) / per_task, solve_work(double(groups), job.n),
                together + kernels.solve_scratch(job.n), [&](std::int64_t task, double *scratch) {
                  const double *of_lane[kMostLanes];
                  const std::int64_t end = std::min(groups, (task + 1) * per_task);
                  for (std::int64_t first = task * per_task; first < end; first += lanes) {
                    const int count = int(std::min<std::int64_t>(lanes, end - first));
                    for (int lane = 0; lane < lanes; ++lane)
                      of_lane[lane] = gram + (first + (lane < count ? lane : 0)) * size;
                    kernels.interleave(of_lane, identity.data(), size, scratch);
                    kernels.solve_batch(job, scratch, first, count, scratch + together);
                  }
                });
}

namespace {

// Rolls out and combines W groups after each other: their weights never leave the cache, nor do the
// snapshots of groups that have just been fitted.
class Endpoints {
public:
  Endpoints(const Kernels &kernels, const Window &window, const Groups &groups,
            const double *coefficients, bool affine, const Horizons &at, const Output &out)
      : kernels_(kernels), groups_(groups), coefficients_(coefficients) {
    const int columns = window.n - 1 - int(affine);
    rollout_ = {nullptr, kernels.lanes, columns, affine, at, nullptr, nullptr};
    combine_ = {window, groups, nullptr, kernels.lanes, at.count, out};
  }

  double nanoseconds(std::int64_t groups, std::int64_t parameters) const {
    RolloutJob all = rollout_;
    all.groups = groups;
    return all.nanoseconds() + combine_.nanoseconds(parameters);
  }

  std::size_t scratch() const {
    if (none())
      return 0;
    return weights_size() + growth_size() +
           std::max(kernels_.rollout.scratch(rollout_), combine_scratch());
  }

  // Groups first … first + count - 1, but for those that `is_large` says are done later.
  template <class IsLarge>
  void write(std::int64_t first, int count, IsLarge &&is_large, double *scratch) const {
    if (none())
      return;
    double *rest = scratch + weights_size() + growth_size();
    roll(first, count, scratch, rest);
    CombineJob job = combine_;
    job.weights = scratch;
    Piece pieces[kMostLanes];
    std::int64_t rows[kMostLanes];
    int small = 0;
    for (int lane = 0; lane < count; ++lane)
      if (!is_large(first + lane)) {
        pieces[small] = whole_group(groups_, first + lane);
        rows[small++] = lane;
      }
    kernels_.combine_pieces(job, pieces, rows, small, rest);
  }

  // The parts of the large groups, last ones first: they are what the cache still holds.
  void write_parts(const std::vector<Part> &parts, std::int64_t parameters) const {
    if (none() || parts.empty())
      return;
    std::vector<std::int64_t> row(parts.size()); // of each part's group in the weights
    std::vector<std::int64_t> large;
    for (std::size_t part = 0; part < parts.size(); ++part) {
      if (large.empty() || large.back() != parts[part].group)
        large.push_back(parts[part].group);
      row[part] = std::int64_t(large.size()) - 1;
    }
    const std::size_t each = weights_size() + growth_size();
    std::vector<double> weights(each * large.size());
    for_each_task(std::int64_t(large.size()), nanoseconds(std::int64_t(large.size()), 0),
                  kernels_.rollout.scratch(rollout_), [&](std::int64_t i, double *scratch) {
                    roll(large[i], 1, &weights[i * each], scratch);
                  });
    for_each_task(std::int64_t(parts.size()), combine_.nanoseconds(parameters), combine_scratch(),
                  [&](std::int64_t task, double *scratch) {
                    const std::size_t part = parts.size() - 1 - task;
                    CombineJob job = combine_;
                    job.weights = &weights[row[part] * each];
                    const std::int64_t first_row = 0;
                    kernels_.combine_pieces(job, &parts[part].piece, &first_row, 1, scratch);
                  });
  }

private:
  bool none() const { return combine_.n_horizons == 0; }
  std::size_t weights_size() const {
    return round_up(std::size_t(combine_.n_horizons) * kernels_.lanes * combine_.window.n);
  }
  std::size_t growth_size() const {
    return round_up(std::size_t(combine_.n_horizons) * kernels_.lanes);
  }
  std::size_t combine_scratch() const {
    return kernels_.combine_scratch(combine_.window.n, combine_.n_horizons);
  }

  // weights (n_horizons, W, n), in the order of the outputs, and the growth behind them.
  void roll(std::int64_t first, int count, double *weights, double *rest) const {
    RolloutJob job = rollout_;
    job.coefficients = coefficients_ + first * job.columns;
    job.weights = weights;
    job.growth = weights + weights_size();
    kernels_.rollout.run(job, 0, count, rest);
  }

  const Kernels &kernels_;
  const Groups &groups_;
  const double *coefficients_; // (groups, columns)
  RolloutJob rollout_;         // of a batch
  CombineJob combine_;         // of a batch, or of a part
};

} // namespace

void gram_solve(const Kernels &kernels, const Window &window, const Groups &groups,
                const SolveJob &job, const Horizons &horizons, const Output &out) {
  const Endpoints ahead(kernels, window, groups, job.out.coefficients, job.affine, horizons, out);
  const std::size_t solving = round_up(kernels.solve_scratch(job.n));
  const Plan plan = make_plan(groups, kernels.lanes);
  const double work =
      solve_work(double(groups.count), job.n) +
      ahead.nanoseconds(groups.count, plan.parts.empty() ? plan.parameters : std::int64_t(0));
  for_each_batch(
      kernels, window, groups, plan, work, solving + ahead.scratch(),
      [&](std::int64_t first, int lanes, const double *gram, double *rest) {
        kernels.solve_batch(job, gram, first, lanes, rest);
        ahead.write(first, lanes, [&](std::int64_t g) { return plan.is_large(g); }, rest + solving);
      });
  ahead.write_parts(plan.parts, plan.parameters);
}

void companion_endpoint(const Kernels &kernels, const Window &window, const Groups &groups,
                        const double *coefficients, bool affine, const Horizons &horizons,
                        const Output &out) {
  const Endpoints endpoints(kernels, window, groups, coefficients, affine, horizons, out);
  const int lanes = kernels.lanes;
  const Plan plan = make_plan(groups, lanes);
  const auto is_large = [&](std::int64_t group) { return plan.is_large(group); };
  for_each_task(std::int64_t(plan.ranges.size()) - 1,
                endpoints.nanoseconds(groups.count, plan.parameters), endpoints.scratch(),
                [&](std::int64_t task, double *scratch) {
                  const std::int64_t end = plan.ranges[task + 1];
                  for (std::int64_t first = plan.ranges[task]; first < end; first += lanes)
                    endpoints.write(first, int(std::min<std::int64_t>(lanes, end - first)),
                                    is_large, scratch);
                });
  endpoints.write_parts(plan.parts, plan.parameters);
}

void combine(const Kernels &kernels, const CombineJob &job) {
  const Plan plan = make_plan(job.groups, 1);
  const std::int64_t parts = std::int64_t(plan.parts.size());
  for_each_task(parts + std::int64_t(plan.ranges.size()) - 1, job.nanoseconds(plan.parameters),
                kernels.combine_scratch(job.window.n, job.n_horizons),
                [&](std::int64_t task, double *scratch) {
                  if (task < parts) {
                    kernels.combine_pieces(job, &plan.parts[task].piece, &plan.parts[task].group, 1,
                                           scratch);
                    return;
                  }
                  const std::int64_t range = task - parts;
                  Piece pieces[kPiecesTogether];
                  std::int64_t rows[kPiecesTogether];
                  int count = 0;
                  for (std::int64_t g = plan.ranges[range]; g < plan.ranges[range + 1]; ++g) {
                    if (plan.is_large(g))
                      continue;
                    pieces[count] = whole_group(job.groups, g);
                    rows[count++] = g;
                    if (count == kPiecesTogether) {
                      kernels.combine_pieces(job, pieces, rows, count, scratch);
                      count = 0;
                    }
                  }
                  kernels.combine_pieces(job, pieces, rows, count, scratch);
                });
}

namespace {

// Spans of rows, where there are few groups: some for every thread there may be, and long enough
// for what a span costs besides its rows.
constexpr std::int64_t kSpanTasks = 64, kLeastSpan = 512;
// Snapshots of a span, in bytes: it is read for one batch of groups after the other, which a file
// that is larger than the memory should be in the page cache for.
constexpr double kSpanBytes = 3e7;
// Windows below it are read batch by batch, where that leaves no thread idle; and sums in doubles,
// above which they are.
constexpr double kHeldBytes = 3e8, kMostSums = 1e8;

// Where the spans of `columns` rows end; `shorter`, the hindcast's window, ends one of them.
std::vector<std::int64_t> span_ends(std::int64_t columns, std::int64_t shorter,
                                    std::int64_t batches, double bytes) {
  const std::int64_t wanted =
      std::max((kSpanTasks + batches - 1) / batches, std::int64_t(bytes / kSpanBytes));
  const std::int64_t spans = std::clamp<std::int64_t>(wanted, 1, columns / kLeastSpan + 1);
  const std::int64_t each = (columns + spans - 1) / spans;
  std::vector<std::int64_t> ends;
  for (std::int64_t end = each; end < columns; end += each)
    ends.push_back(end);
  if (shorter > 0)
    ends.push_back(shorter);
  ends.push_back(columns);
  std::sort(ends.begin(), ends.end());
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
  return ends;
}

void fit_long(const Kernels &kernels, const FeatureFitJob &job) {
  const std::int64_t lanes = kernels.lanes, batches = (job.count() + lanes - 1) / lanes;
  const std::int64_t columns = job.window.n - 1 - int(job.affine);
  const std::int64_t shorter = std::max<std::int64_t>(columns - job.holdout, 0);
  const double bytes = double(job.window.n) * double(job.window.size) * double(job.window.step);
  const std::vector<std::int64_t> ends = span_ends(columns, shorter, batches, bytes);
  const std::int64_t spans = std::int64_t(ends.size());
  const int before = int(std::find(ends.begin(), ends.end(), shorter) - ends.begin()) + 1;
  const std::size_t basis_size = kernels.long_basis_size(job.m);
  const std::size_t each = kernels.span_sums_size(job.m), scratch_size = kernels.long_scratch(job);
  const auto count_of = [&](std::int64_t batch) {
    return int(std::min(lanes, job.count() - batch * lanes));
  };
  const auto sum = [&](std::int64_t batch, std::int64_t span, double *basis, double *sums,
                       double *scratch) {
    kernels.span_sums(job, batch * lanes, count_of(batch), basis, span > 0 ? ends[span - 1] : 0,
                      ends[span], sums, scratch);
  };
  const bool held = bytes < kHeldBytes && (batches >= kSpanTasks / 2 || columns < 2 * kLeastSpan);
  if (held || double(batches) * double(spans * each) > kMostSums) { // a batch after the other
    const std::size_t memory = round_up(basis_size) + round_up(spans * each);
    for_each_task(batches, job.nanoseconds(), memory + scratch_size,
                  [&](std::int64_t batch, double *scratch) {
                    double *basis = scratch, *sums = basis + round_up(basis_size);
                    double *rest = scratch + memory;
                    const std::int64_t first = batch * lanes;
                    kernels.long_basis(job, first, count_of(batch), basis, rest);
                    for (std::int64_t span = 0; span < spans; ++span)
                      sum(batch, span, basis, sums + span * each, rest);
                    kernels.long_fit(job, first, count_of(batch), basis, sums, int(spans), before,
                                     rest);
                  });
    return;
  }
  const std::size_t room = round_up(basis_size);
  std::vector<double> memory(batches * (room + spans * each) + 8);
  void *at = memory.data();
  std::size_t space = memory.size() * sizeof(double);
  std::align(64, 0, at, space);
  double *bases = static_cast<double *>(at), *sums = bases + batches * room;
  for_each_task(
      batches, 0.1 * job.nanoseconds(), scratch_size, [&](std::int64_t batch, double *scratch) {
        kernels.long_basis(job, batch * lanes, count_of(batch), bases + batch * room, scratch);
      });
  for_each_task(
      batches * spans, job.nanoseconds(), scratch_size, [&](std::int64_t task, double *scratch) {
        sum(task / spans, task % spans, bases + task / spans * room, sums + task * each, scratch);
      });
  for_each_task(batches, 0.1 * job.nanoseconds(), scratch_size,
                [&](std::int64_t batch, double *scratch) {
                  kernels.long_fit(job, batch * lanes, count_of(batch), bases + batch * room,
                                   sums + batch * spans * each, int(spans), before, scratch);
                });
}

void fit_large(const Kernels &kernels, const FeatureFitJob &job) {
  const std::size_t memory = round_up(kernels.large_fit_memory(job));
  const std::size_t scratch_size = kernels.large_fit_scratch(job);
  if (job.count() >= thread_count()) {
    for_each_task(job.count(), job.nanoseconds(), memory + scratch_size,
                  [&](std::int64_t group, double *scratch) {
                    kernels.large_fit(job, group, {nullptr, scratch + memory}, scratch);
                  });
    return;
  }
  const Scratch own(memory);
  for (std::int64_t group = 0; group < job.count(); ++group)
    kernels.large_fit(job, group, {run_tasks, nullptr}, own.get());
}

constexpr std::int64_t kSinglesTogether = 512; // groups of one parameter

void fit_once(const Kernels &kernels, const FeatureFitJob &job) {
  if (job.m == 1 && job.passes != Passes::sampled && job.rank <= 1)
    run(kernels.single_fit, job, kSinglesTogether);
  else if (job.passes == Passes::sampled)
    fit_long(kernels, job);
  else if (job.passes == Passes::large)
    fit_large(kernels, job);
  else
    run(kernels.feature_fit, job, kernels.lanes);
}

// Groups of which one pass says too little: moments lose digits (`unsure` in
// backends/second_pass.py, of float32), or the rank may not be full.
std::vector<std::int64_t> unsure_groups(const FeatureFitJob &job) {
  std::vector<std::int64_t> unsure;
  for (std::int64_t group = 0; group < job.count(); ++group) {
    const double condition = job.condition[group];
    const bool lost = std::isfinite(condition) && condition * condition * 0x1p-53 > kUnsureFloat;
    if (job.passes == Passes::moments ? job.ranks[group] < job.m || lost : job.ranks[group] == 0)
      unsure.push_back(group);
  }
  return unsure;
}

// `size` numbers of each of the groups `which` <- those in `from`, one group after the other.
template <class T>
void put_back(const std::vector<std::int64_t> &which, std::size_t size, const std::vector<T> &from,
              T *to) {
  for (std::size_t i = 0; i < which.size(); ++i)
    std::copy_n(&from[i * size], size, to + which[i] * size);
}

// Some of the groups by a second pass.
void fit_again(const Kernels &kernels, const FeatureFitJob &job,
               const std::vector<std::int64_t> &which) {
  const std::size_t count = which.size(), m = job.m;
  std::vector<std::int64_t> ptr{0}, start, length, stride;
  for (const std::int64_t group : which) {
    const auto take = [&](const std::int64_t *from, std::vector<std::int64_t> &to) {
      to.insert(to.end(), from + job.groups.ptr[group], from + job.groups.ptr[group + 1]);
    };
    take(job.groups.start, start);
    take(job.groups.length, length);
    take(job.groups.stride, stride);
    ptr.push_back(std::int64_t(start.size()));
  }
  FeatureFitJob again = job;
  again.groups = {ptr.data(), start.data(), length.data(), stride.data(), std::int64_t(count)};
  again.passes = Passes::second;
  std::vector<std::int64_t> ranks(count);
  again.ranks = ranks.data();
  std::vector<double> numbers[7];
  struct Array {
    double *FeatureFitJob::*member;
    std::size_t size;
  };
  const Array arrays[] = {
      {&FeatureFitJob::condition, 1},    {&FeatureFitJob::residual, 1},
      {&FeatureFitJob::hindcast, 1},     {&FeatureFitJob::operators, m * m},
      {&FeatureFitJob::whitener, m * m}, {&FeatureFitJob::readout, m * m},
      {&FeatureFitJob::start, m},
  };
  for (int i = 0; i < 7; ++i)
    if (job.*arrays[i].member != nullptr) {
      numbers[i].resize(count * arrays[i].size);
      again.*arrays[i].member = numbers[i].data();
    }
  fit_once(kernels, again);
  put_back(which, 1, ranks, job.ranks);
  for (int i = 0; i < 7; ++i)
    if (job.*arrays[i].member != nullptr)
      put_back(which, arrays[i].size, numbers[i], job.*arrays[i].member);
}

} // namespace

void feature_fit(const Kernels &kernels, const FeatureFitJob &job) {
  fit_once(kernels, job);
  if (job.passes == Passes::second)
    return;
  const std::vector<std::int64_t> unsure = unsure_groups(job);
  if (!unsure.empty())
    fit_again(kernels, job, unsure);
}

} // namespace koopcore::cpu
