// Rollout of a dense operator to several horizons, one group per lane.
//
// p_T = K^{T-1} z and, for the affine model, s_T = Σ_{j<T} K^j z, advanced by blocks of b = 2^l
// steps:
//     p_{T+b} = K^b p_T,    s_{T+b} = K^b s_T + s_b,    s_{2b} = s_b + K^b s_b.
// A power K^b costs as much as r steps, so powers are made only as far as the gap to the next
// horizon repays them; they are kept for the later horizons.
#pragma once

#include "algorithms/lanes.h"
#include "algorithms/product.h"

namespace koopcore {

constexpr int kMostLevels = 62;

// Levels of K^(2^l) worth having to advance `gap` steps, when `have` are there already.
KOOPCORE_HD static inline int worthwhile_levels(std::int64_t gap, int size, int have) {
  int best = 0;
  double least = HUGE_VAL;
  for (int level = 0; level < kMostLevels && (level == 0 || gap >> level > 0); ++level) {
    const int missing = level > have ? level - have : 0;
    const double cost = double(gap >> level) + level + double(missing) * size;
    if (cost < least) {
      least = cost;
      best = level;
    }
  }
  return best;
}

// Levels that `rollout_dense` makes at most for these ascending horizons: having some levels never
// makes further ones worthwhile that were not before.
KOOPCORE_HD static inline int dense_rollout_levels(int size, const std::int64_t *horizons,
                                                   int n_horizons) {
  int most = 0;
  for (int h = 0; h < n_horizons; ++h) {
    const int levels = worthwhile_levels(horizons[h] - (h == 0 ? 1 : horizons[h - 1]), size, 0);
    most = levels > most ? levels : most;
  }
  return most;
}

// Numbers (Real) that `rollout_dense` needs as work space.
KOOPCORE_HD static constexpr int dense_rollout_work(int size, int levels) {
  return levels * (size * size + size) + 3 * size;
}

// Calls emit(i, state, growth) for every horizon i: state = s_T if `affine`, else p_T. k: (r × r),
// z: (r). `horizons` ascending, each at least 1. With `growth` false that of the affine model is
// not known, and p_T, which only it needs, is not rolled. `most_levels` as from
// dense_rollout_levels; work: dense_rollout_work(r, most_levels).
template <class L, class Emit>
KOOPCORE_HD void rollout_dense(const typename L::Real *k, const typename L::Real *z, int size,
                               bool affine, bool growth, const std::int64_t *horizons,
                               int n_horizons, int most_levels, typename L::Real *work,
                               Emit &&emit) {
  using Real = typename L::Real;
  const int matrix = size * size;
  const bool powers = growth || !affine;
  Real *power = work, *total = power + size, *next = total + size, *ladder = next + size;
  // Level l >= 1 holds K^(2^l) and s_(2^l) at ladder + (l-1)(r² + r); level 0 is K and z.
  int have = 0;
  Real reference = L::broadcast(0.0);
  each<L>(size, [&](int i) { power[i] = total[i] = z[i]; });
  for (int i = 0; i < size; ++i)
    reference += z[i] * z[i];
  const auto level_at = [&](int level) { return ladder + (level - 1) * (matrix + size); };
  std::int64_t reached = 1;
  for (int h = 0; h < n_horizons; ++h) {
    std::int64_t gap = horizons[h] - reached;
    int levels = worthwhile_levels(gap, size, have);
    levels = levels < most_levels ? levels : most_levels;
    for (; have < levels; ++have) {
      const Real *from = have == 0 ? k : level_at(have);
      const Real *sums = have == 0 ? z : from + matrix;
      Real *to = level_at(have + 1);
      multiply<L, Left::plain>(from, from, size, size, size, to);
      apply<L>(from, size, size, sums, to + matrix);
      each<L>(size, [&](int i) { to[matrix + i] += sums[i]; });
    }
    for (int level = levels; level >= 0; --level) {
      const Real *step = level == 0 ? k : level_at(level);
      const Real *sums = level == 0 ? z : step + matrix;
      for (; gap >> level > 0; gap -= std::int64_t(1) << level) {
        if (powers) {
          apply<L>(step, size, size, power, next);
          each<L>(size, [&](int i) { power[i] = next[i]; });
        }
        if (!affine)
          continue;
        apply<L>(step, size, size, total, next);
        each<L>(size, [&](int i) { total[i] = next[i] + sums[i]; });
      }
    }
    reached = horizons[h];
    Real norm = L::broadcast(0.0);
    if (growth) {
      for (int i = 0; i < size; ++i)
        norm += power[i] * power[i];
      norm = L::sqrt(norm / reference);
    }
    emit(h, affine ? total : power, norm);
  }
}

} // namespace koopcore
