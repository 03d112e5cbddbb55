// What Python passes to _cpu, checked once and turned into the views that the stages work on.
//
// Mirrors cuda/arguments.h.
#pragma once

#include "cpu/plan.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace koopcore::cpu {

using Index =
    pybind11::array_t<std::int64_t, pybind11::array::c_style | pybind11::array::forcecast>;

// float64 (true) or float32 (false), in the byte order of this machine.
inline bool is_float64(const pybind11::array &array, const char *name) {
  if (pybind11::isinstance<pybind11::array_t<float>>(array))
    return false;
  if (pybind11::isinstance<pybind11::array_t<double>>(array))
    return true;
  throw std::invalid_argument(std::string(name) + " has dtype " +
                              std::string(pybind11::str(array.dtype())) +
                              "; accepted are float32 and float64");
}

// (array, order): row order[k] of the two-dimensional array is snapshot k, oldest first.
class SnapshotArgument {
public:
  SnapshotArgument(const pybind11::array &array, const Index &order) {
    if (array.ndim() != 2 || order.ndim() != 1)
      throw std::invalid_argument(
          "snapshots must be two-dimensional and their order a vector; got " +
          std::to_string(array.ndim()) + " and " + std::to_string(order.ndim()) + " dimensions");
    if (order.shape(0) < 1)
      throw std::invalid_argument("order is empty; name at least one row of the snapshots");
    view.is_double = is_float64(array, "snapshots");
    view.n = int(order.shape(0));
    view.size = array.shape(1);
    view.step = array.strides(1);
    const std::int64_t *slot = order.data(), count = array.shape(0), step = array.strides(0);
    rows_.reset(new const char *[view.n]);
    const auto first = reinterpret_cast<std::intptr_t>(array.data());
    bool good = true;
    for (int k = 0; k < view.n; ++k) {
      good &= std::uint64_t(slot[k]) < std::uint64_t(count);
      rows_[k] = reinterpret_cast<const char *>(first + slot[k] * step);
    }
    for (int k = 0; !good && k < view.n; ++k)
      if (slot[k] < 0 || slot[k] >= count)
        throw std::invalid_argument("order[" + std::to_string(k) + "] is " +
                                    std::to_string(slot[k]) + "; the array has rows 0 to " +
                                    std::to_string(count - 1));
    view.rows = rows_.get();
  }
  SnapshotArgument(const SnapshotArgument &) = delete;
  SnapshotArgument &operator=(const SnapshotArgument &) = delete;

  Window view;

private:
  std::unique_ptr<const char *[]> rows_;
};

// (group_ptr, start, length, stride) of a partition, looked through once: Python keeps it.
class CheckedGroups {
public:
  explicit CheckedGroups(const pybind11::tuple &segments) {
    if (segments.size() != 4)
      throw std::invalid_argument("segments must be (group_ptr, start, length, stride)");
    for (int i = 0; i < 4; ++i)
      arrays_[i] = Index::ensure(segments[i]);
    for (const Index &array : arrays_)
      if (!array || array.ndim() != 1)
        throw std::invalid_argument("group_ptr, start, length and stride must be int64 vectors");
    const std::int64_t count = arrays_[1].shape(0), groups = arrays_[0].shape(0) - 1;
    if (arrays_[2].shape(0) != count || arrays_[3].shape(0) != count || groups < 0 ||
        arrays_[0].at(0) != 0 || arrays_[0].at(groups) != count)
      throw std::invalid_argument("group_ptr must run from 0 to the number of segments, and start, "
                                  "length and stride have one entry per segment");
    view = {arrays_[0].data(), arrays_[1].data(), arrays_[2].data(), arrays_[3].data(), groups};
    extent_ = extent_of(view);
    m_ = extent_ < 0 || groups == 0 ? 0 : common_size(view);
  }
  // Throws unless all segments are inside a snapshot of `size` parameters.
  void check(std::int64_t size) const {
    if (extent_ < 0 || extent_ > size)
      check_groups(view, size);
  }
  // Parameters of every group; throws unless all have as many.
  int equal_size() const { return m_ > 0 ? int(m_) : cpu::equal_size(view); }

  Groups view;

private:
  Index arrays_[4];
  std::int64_t extent_, m_;
};

// The same as an argument, of snapshots of `size` parameters.
struct GroupsArgument {
  GroupsArgument(const CheckedGroups &groups, std::int64_t size) : view(groups.view) {
    groups.check(size);
  }
  Groups view;
};

// The same of groups that all have m parameters.
struct EqualGroupsArgument : GroupsArgument {
  EqualGroupsArgument(const CheckedGroups &groups, std::int64_t size)
      : GroupsArgument(groups, size), m(groups.equal_size()) {}
  int m;
};

// The fields of a Companion, as NumPy arrays.
struct CompanionResult {
  CompanionResult(std::int64_t groups, std::int64_t columns) {
    pybind11::array_t<double> coefficients({groups, columns});
    pybind11::array_t<std::int64_t> rank(groups);
    pybind11::array_t<double> residual(groups), condition(groups), hindcast(groups);
    view = {coefficients.mutable_data(), rank.mutable_data(), residual.mutable_data(),
            condition.mutable_data(), hindcast.mutable_data()};
    tuple = pybind11::make_tuple(std::move(coefficients), std::move(rank), std::move(residual),
                                 std::move(condition), std::move(hindcast));
    count_ = groups * columns;
    columns_ = columns;
  }
  // Whether every group has full rank and finite coefficients.
  bool whole() const {
    bool all = true;
    for (std::int64_t i = 0; i < count_; ++i)
      all &= view.coefficients[i] - view.coefficients[i] == 0.0;
    for (std::int64_t g = 0; all && g < count_ / columns_; ++g)
      all &= view.rank[g] == columns_;
    return all;
  }
  CompanionArrays view;
  pybind11::tuple tuple;

private:
  std::int64_t count_, columns_;
};

// Horizons (or stops) in ascending order, and where each stood.
struct SortedHorizons {
  explicit SortedHorizons(const std::vector<std::int64_t> &given) : slots(given.size()) {
    std::iota(slots.begin(), slots.end(), 0);
    std::stable_sort(slots.begin(), slots.end(), [&](int a, int b) { return given[a] < given[b]; });
    for (int slot : slots)
      horizons.push_back(given[slot]);
    if (!horizons.empty() && horizons[0] < 1)
      throw std::invalid_argument("a horizon is " + std::to_string(horizons[0]) +
                                  "; horizons are at least 1 snapshot");
  }
  Horizons view() const { return {horizons.data(), slots.data(), int(slots.size())}; }

  std::vector<std::int64_t> horizons;
  std::vector<int> slots;
};

// A writeable (rows, size) array of float32 or float64, any strides.
struct OutputArgument {
  OutputArgument(const pybind11::array &out, std::int64_t rows, std::int64_t size) {
    if (out.ndim() != 2 || out.shape(0) != rows || out.shape(1) != size)
      throw std::invalid_argument("out must have the shape (" + std::to_string(rows) + ", " +
                                  std::to_string(size) + ")");
    if (!out.writeable())
      throw std::invalid_argument("out is read-only; give a writeable array");
    view = {static_cast<char *>(const_cast<void *>(out.data())), out.strides(0), out.strides(1),
            is_float64(out, "out")};
  }
  Output view;
};

// (horizons, out), or None: endpoints that a fit also predicts, while the snapshots are in cache.
class AheadArgument {
public:
  AheadArgument(const pybind11::object &given, std::int64_t size)
      : sorted_(given.is_none() ? std::vector<std::int64_t>()
                                : pybind11::tuple(given)[0].cast<std::vector<std::int64_t>>()) {
    horizons = sorted_.view();
    if (given.is_none())
      return;
    const pybind11::array out = pybind11::tuple(given)[1];
    output = OutputArgument(out, horizons.count, size).view;
  }
  AheadArgument(const AheadArgument &) = delete;
  AheadArgument &operator=(const AheadArgument &) = delete;

  Horizons horizons;
  Output output{};

private:
  SortedHorizons sorted_;
};

} // namespace koopcore::cpu
