// Groups of a partition: whether they are sound, and how they are cut into tasks.
//
// The counterpart of native_cuda/plan.py. A plan does not depend on the number of threads.
#pragma once

#include "cpu/problem.h"

#include <vector>

namespace koopcore::cpu {

// A part of a large group, whose sums are added to those of the group's other parts.
struct Part {
  std::int64_t group;
  Piece piece;
};

struct Plan {
  std::int64_t parameters = 0;          // of all groups
  std::vector<std::int64_t> ranges;     // task t takes the groups ranges[t] … ranges[t+1] - 1
  std::vector<Part> parts;              // of the large groups, in order
  std::vector<std::int64_t> first_part; // (groups + 1,) empty when no group is large

  // Whether the group is cut into parts.
  bool is_large(std::int64_t group) const {
    return !first_part.empty() && first_part[group] < first_part[group + 1];
  }
};

// Parameters of group g.
std::int64_t group_size(const Groups &groups, std::int64_t group);

// Throws std::invalid_argument unless every segment lies inside a snapshot of `size` parameters.
void check_groups(const Groups &groups, std::int64_t size);

// The least size of a snapshot that holds all segments; -1 where there is none.
std::int64_t extent_of(const Groups &groups);

// Parameters of every group; 0 unless all have as many.
std::int64_t common_size(const Groups &groups);

// The same; throws std::invalid_argument unless all have as many.
int equal_size(const Groups &groups);

// Ranges hold multiples of `lanes` groups (but for the last) and some thousand parameters. Groups
// of more than two parts' size are cut.
Plan make_plan(const Groups &groups, int lanes);

} // namespace koopcore::cpu
