// The whole fit of groups of one parameter, in closed form: a lane is a group.
//
// U is a number, a = Σ f'f / Σ f²; C = Σ f² and E - C = Σ (f' - f) f as on the feature side, of
// which this is the case m = 1. The linear model needs no reflection, which would turn every sign.
#include "cpu/accumulate.h"
#include "cpu/kernels.h"

namespace koopcore::cpu::KOOPCORE_ISA {

namespace {

constexpr int kApart = 4; // sums that do not wait for one another

// W groups whose parameters start at `offset`, and whether those stand side by side.
struct Lanes {
  std::ptrdiff_t offset[kLanes];
  bool together, alone;

  Lanes(const Groups &groups, std::ptrdiff_t step, std::ptrdiff_t number, std::int64_t first,
        int count) {
    together = count == kLanes;
    alone = count == 1;
    for (int lane = 0; lane < kLanes; ++lane) {
      const std::int64_t group = first + (lane < count ? lane : 0);
      offset[lane] = step * groups.start[groups.ptr[group]];
      together = together && offset[lane] == offset[0] + lane * number;
    }
  }
  template <class T> KOOPCORE_INLINE Vec take(const char *row) const {
    if (alone) {
      T x;
      __builtin_memcpy(&x, row + offset[0], sizeof x);
      return SimdLanes::broadcast(double(x));
    }
    return together ? load<T>(row + offset[0]) : gather_at<T>(row, offset);
  }
};

// Of a window: C, E - C, and the newest columns of F and F'.
struct Sums {
  Vec square, change, newest, ahead;
};

struct Fit {
  Vec a, root; // root: of C
};

Fit fit_of(const Sums &sums) {
  const IntVec some = sums.square > 0.0;
  const Vec one = Vec{} + 1.0;
  const Vec square = some ? sums.square : one;
  return {some ? 1.0 + sums.change / square : Vec{}, some ? SimdLanes::sqrt(square) : Vec{}};
}

// a^T and Σ_{j<T} aʲ for one T after the other, from those of the powers of two.
class Rollout {
public:
  explicit Rollout(const Vec &a) {
    powers_[0] = a;
    totals_[0] = Vec{} + 1.0;
  }
  void advance(std::int64_t steps) {
    for (int level = 0; steps >> level > 0; ++level) {
      if (level == levels_) {
        powers_[level] = powers_[level - 1] * powers_[level - 1];
        totals_[level] = totals_[level - 1] + powers_[level - 1] * totals_[level - 1];
        ++levels_;
      }
      if (steps >> level & 1) {
        total += power * totals_[level];
        power *= powers_[level];
      }
    }
  }
  Vec power = Vec{} + 1.0, total{};

private:
  Vec powers_[63], totals_[63];
  int levels_ = 1;
};

template <class U> void store_lanes(const Vec &value, const Lanes &to, int count, char *row) {
  const Narrow<U> x = narrow<U>(clip<U>(value));
  if (to.together) {
    __builtin_memcpy(row + to.offset[0], &x, sizeof x);
    return;
  }
  for (int lane = 0; lane < count; ++lane) {
    const U one = x[lane];
    __builtin_memcpy(row + to.offset[lane], &one, sizeof one);
  }
}

void put(const Vec &value, int count, double *out) {
  if (count == kLanes)
    __builtin_memcpy(out, &value, sizeof value);
  else
    for (int lane = 0; lane < count; ++lane)
      out[lane] = value[lane];
}

// The predictions of a fit, and where they go; a lane that diverged is given its last snapshot.
void write_endpoints(const FeatureFitJob &job, const Fit &fit, const Vec &start, const Vec &last,
                     std::int64_t first, int count) {
  const std::ptrdiff_t number = job.out.is_double ? sizeof(double) : sizeof(float);
  const Lanes to(job.groups, job.out.step, number, first, count);
  const Vec state = fit.root > 0.0 ? start / fit.root : Vec{};
  Rollout roll(fit.a);
  std::int64_t steps = 0;
  for (int h = 0; h < job.horizons.count; ++h) {
    roll.advance(job.horizons.ascending[h] - 1 - steps);
    steps = job.horizons.ascending[h] - 1;
    const Vec rolled = job.affine ? roll.total + roll.power : roll.power; // Σ_{j<T} aʲ or a^{T-1}
    const IntVec tame = SimdLanes::abs(rolled * state) <= Vec{} + kWeightLimit;
    const Vec moved = fit.a * rolled * start;
    const Vec value = tame ? (job.affine ? last + moved : moved) : last;
    char *row = job.out.data + job.horizons.slot[h] * job.out.row;
    (job.out.is_double ? store_lanes<double> : store_lanes<float>)(value, to, count, row);
  }
}

template <class T> void fit_lanes(const FeatureFitJob &job, std::int64_t first, int count) {
  const Window &w = job.window;
  const Lanes from(job.groups, w.step, sizeof(T), first, count);
  const int columns = w.n - 1 - int(job.affine), shorter = columns - job.holdout;
  Sums whole{}, held{};
  Vec x = from.take<T>(w.rows[0]);
  int next = 1;
  const auto row = [&] { // the next column
    const char *at = w.rows[next++];
    __builtin_prefetch(at + from.offset[0] + kPrefetchAhead);
    const Vec before = x;
    x = from.take<T>(at);
    return job.affine ? x - before : x;
  };
  Vec y = job.affine ? row() : x;
  Vec newest{}, square[kApart] = {}, change[kApart] = {};
  const auto add = [&](int which) {
    newest = y;
    y = row();
    square[which] += newest * newest;
    change[which] += (y - newest) * newest;
  };
  const int ends[] = {shorter, columns};
  int t = 0;
  for (int stop = shorter >= 1 ? 0 : 1; stop < 2; ++stop) {
    for (; t + kApart <= ends[stop]; t += kApart)
      KOOPCORE_UNROLL
    for (int which = 0; which < kApart; ++which)
      add(which);
    for (; t < ends[stop]; ++t)
      add(0);
    whole.square = (square[0] + square[1]) + (square[2] + square[3]);
    whole.change = (change[0] + change[1]) + (change[2] + change[3]);
    whole.newest = newest;
    whole.ahead = y;
    if (stop == 0)
      held = whole;
  }
  const Vec last = x, none = Vec{} + __builtin_nan("");
  Vec hindcast = none;
  if (shorter >= 1) {
    const Fit fit = fit_of(held);
    const Vec held_x = from.take<T>(w.rows[w.n - 1 - job.holdout]), movement = last - held_x;
    Rollout roll(fit.a);
    roll.advance(job.holdout);
    // Σ_{j=1..h} aʲ d, or a^h x
    const Vec predicted =
        job.affine ? fit.a * roll.total * held.ahead : roll.power * held_x - held_x;
    const Vec missed = SimdLanes::abs(predicted - movement);
    const IntVec moved = SimdLanes::abs(movement) > 0.0;
    hindcast = moved ? missed / SimdLanes::abs(moved ? movement : Vec{} + 1.0) : Vec{};
  }
  const Fit fit = fit_of(whole);
  const IntVec some = whole.square > 0.0;
  // What is not finite makes the residual so.
  Vec residual =
      SimdLanes::abs(fit.a * whole.newest - whole.ahead) + 0.0 * (whole.square + whole.change);
  if (job.ranged) {
    const IntVec near =
        SimdLanes::both(whole.square > kLeastSquare, whole.square < kGreatestSquare);
    residual = near ? residual : none;
  }
  for (int lane = 0; lane < count; ++lane)
    job.ranks[first + lane] = some[lane] ? 1 : 0;
  put(some ? Vec{} + 1.0 : Vec{} + HUGE_VAL, count, job.condition + first);
  put(residual, count, job.residual + first);
  put(hindcast, count, job.hindcast + first);
  // The reflection of the linear model takes x_n to -x_n.
  const Vec start = job.affine ? whole.ahead : last;
  if (job.operators != nullptr) {
    const Vec inverse = some ? 1.0 / (some ? fit.root : Vec{} + 1.0) : Vec{};
    put(fit.a, count, job.operators + first);
    put(inverse, count, job.whitener + first);
    put(fit.a * fit.root, count, job.readout + first);
    put((job.affine ? start : -start) * inverse, count, job.start + first);
  }
  write_endpoints(job, fit, start, last, first, count);
}

} // namespace

std::size_t single_fit_scratch(const FeatureFitJob &) { return 0; }

void single_fit_batch(const FeatureFitJob &job, std::int64_t first, int count, double *) {
  for (std::int64_t done = 0; done < count; done += kLanes) {
    const int some = count - done < kLanes ? int(count - done) : kLanes;
    (job.window.is_double ? fit_lanes<double> : fit_lanes<float>)(job, first + done, some);
  }
}

} // namespace koopcore::cpu::KOOPCORE_ISA
