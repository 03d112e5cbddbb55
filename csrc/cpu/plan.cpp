// Groups of a partition: whether they are sound, and how they are cut into tasks.
#include "cpu/plan.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace koopcore::cpu {

namespace {

// A task streams over this many parameters: long enough for the hardware prefetcher, short enough
// that the last task to finish leaves no thread idle for long.
constexpr std::int64_t kLeastTask = 2048, kMostTask = 16384;
// Parts of a large group are no smaller, and about this many in all.
constexpr std::int64_t kLeastPart = 4096, kParts = 512;

void cut_group(const Groups &groups, std::int64_t group, std::int64_t width, Plan &plan) {
  std::int64_t filled = 0;
  Piece piece{groups.ptr[group], 0, 0};
  for (std::int64_t s = groups.ptr[group]; s < groups.ptr[group + 1]; ++s)
    for (std::int64_t within = 0; within < groups.length[s];) {
      if (filled == 0)
        piece = {s, within, 0};
      const std::int64_t take = std::min(width - filled, groups.length[s] - within);
      filled += take;
      within += take;
      piece.count = filled;
      if (filled == width) {
        plan.parts.push_back({group, piece});
        filled = 0;
      }
    }
  if (filled > 0)
    plan.parts.push_back({group, piece});
}

} // namespace

std::int64_t group_size(const Groups &groups, std::int64_t group) {
  std::int64_t size = 0;
  for (std::int64_t s = groups.ptr[group]; s < groups.ptr[group + 1]; ++s)
    size += groups.length[s];
  return size;
}

void check_groups(const Groups &groups, std::int64_t size) {
  for (std::int64_t g = 0; g < groups.count; ++g)
    if (groups.ptr[g] >= groups.ptr[g + 1])
      throw std::invalid_argument("group " + std::to_string(g) + " has no segment; drop it");
  bool good = true;
  const std::int64_t segments = groups.ptr[groups.count];
  for (std::int64_t s = 0; s < segments; ++s) {
    const std::int64_t first = groups.start[s], count = groups.length[s];
    const std::int64_t stride = groups.stride[s];
    good &= (first >= 0) & (first < size) & (count >= 1) & (stride >= 1);
    // Divided rather than multiplied: the product of hostile numbers could wrap around. Contiguous
    // segments, which are most, need neither.
    good = good && (stride == 1 ? count <= size - first : (size - 1 - first) / stride >= count - 1);
  }
  if (!good)
    throw std::invalid_argument("the partition has segments outside the " + std::to_string(size) +
                                " parameters of a snapshot; fit with the partition's own layout");
}

std::int64_t extent_of(const Groups &groups) {
  for (std::int64_t g = 0; g < groups.count; ++g)
    if (groups.ptr[g] >= groups.ptr[g + 1])
      return -1;
  std::int64_t extent = 0;
  for (std::int64_t s = 0; s < groups.ptr[groups.count]; ++s) {
    const std::int64_t first = groups.start[s], steps = groups.length[s] - 1;
    std::int64_t reach, end;
    if (first < 0 || steps < 0 || groups.stride[s] < 1 ||
        __builtin_mul_overflow(steps, groups.stride[s], &reach) ||
        __builtin_add_overflow(reach, first, &end))
      return -1;
    extent = end >= extent ? end + 1 : extent;
  }
  return extent;
}

std::int64_t common_size(const Groups &groups) {
  const std::int64_t m = group_size(groups, 0);
  for (std::int64_t g = 1; g < groups.count; ++g)
    if (group_size(groups, g) != m)
      return 0;
  return m;
}

int equal_size(const Groups &groups) {
  if (groups.count == 0)
    throw std::invalid_argument("the partition has no groups; this stage needs at least one");
  const std::int64_t m = group_size(groups, 0);
  for (std::int64_t g = 1; g < groups.count; ++g)
    if (group_size(groups, g) != m)
      throw std::invalid_argument("group " + std::to_string(g) + " has " +
                                  std::to_string(group_size(groups, g)) +
                                  " parameters and group 0 " + std::to_string(m) +
                                  "; this stage needs groups of equal size");
  return int(m);
}

Plan make_plan(const Groups &groups, int lanes) {
  Plan plan;
  for (std::int64_t s = 0; s < groups.ptr[groups.count]; ++s)
    plan.parameters += groups.length[s];
  const std::int64_t task = std::clamp(plan.parameters / 64, kLeastTask, kMostTask);
  const std::int64_t width = std::max(kLeastPart, (plan.parameters / kParts + 63) / 64 * 64);
  plan.ranges.push_back(0);
  std::int64_t filled = 0;
  for (std::int64_t g = 0; g < groups.count; ++g) {
    const std::int64_t size = group_size(groups, g);
    if (size > 2 * width) {
      if (plan.first_part.empty())
        plan.first_part.assign(groups.count + 1, 0);
      plan.first_part[g] = std::int64_t(plan.parts.size());
      cut_group(groups, g, width, plan);
      plan.first_part[g + 1] = std::int64_t(plan.parts.size());
    } else {
      if (!plan.first_part.empty())
        plan.first_part[g] = plan.first_part[g + 1] = std::int64_t(plan.parts.size());
      filled += size;
    }
    if (g + 1 == groups.count || ((g + 1) % lanes == 0 && filled >= task)) {
      plan.ranges.push_back(g + 1);
      filled = 0;
    }
  }
  return plan;
}

} // namespace koopcore::cpu
