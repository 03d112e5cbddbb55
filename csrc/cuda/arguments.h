// What Python passes to _cuda: addresses and sizes, checked where they can be and packed for
// kernels.
//
// Mirrors cpu/arguments.h.
#pragma once

#include "cuda/device.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <vector>

namespace koopcore::cuda {

using Address = std::uintptr_t;

template <class T> T *pointer(Address address) { return reinterpret_cast<T *>(address); }

template <class T> T at(const pybind11::tuple &of, int i) { return of[i].cast<T>(); }

template <class T> const T *pointer_at(const pybind11::tuple &of, int i) {
  return pointer<const T>(at<Address>(of, i));
}

inline void expect(const pybind11::tuple &of, std::size_t size, const char *what) {
  if (of.size() != size)
    throw std::invalid_argument(std::string(what) + " must have " + std::to_string(size) +
                                " fields, not " + std::to_string(of.size()));
}

// (base, row, step, first, slots, order, size, n, is_double)
inline Window window_of(const pybind11::tuple &of) {
  expect(of, 9, "a window");
  return {pointer_at<char>(of, 0), at<std::int64_t>(of, 1),      at<std::int64_t>(of, 2),
          at<std::int64_t>(of, 3), at<std::int64_t>(of, 4),      pointer_at<std::int64_t>(of, 5),
          at<std::int64_t>(of, 6), int(at<std::int64_t>(of, 7)), at<bool>(of, 8)};
}

// (ptr, start, length, stride, count)
inline Groups groups_of(const pybind11::tuple &of) {
  expect(of, 5, "groups");
  return {pointer_at<std::int64_t>(of, 0), pointer_at<std::int64_t>(of, 1),
          pointer_at<std::int64_t>(of, 2), pointer_at<std::int64_t>(of, 3),
          at<std::int64_t>(of, 4)};
}

// (small, n_small, pieces, n_middle, n_pieces, large_group, large_piece, n_large)
inline Plan plan_of(const pybind11::tuple &of) {
  expect(of, 8, "a plan");
  return {pointer_at<std::int64_t>(of, 0), at<std::int64_t>(of, 1), pointer_at<Piece>(of, 2),
          at<std::int64_t>(of, 3),         at<std::int64_t>(of, 4), pointer_at<std::int64_t>(of, 5),
          pointer_at<std::int64_t>(of, 6), at<std::int64_t>(of, 7)};
}

// (data, row, step, kind)
inline Output output_of(const pybind11::tuple &of) {
  expect(of, 4, "an output");
  return {pointer<char>(at<Address>(of, 0)), at<std::int64_t>(of, 1), at<std::int64_t>(of, 2),
          Kind(at<int>(of, 3))};
}

// (count, data, start, length, kind, block, blocks), or () for none
inline Tensors tensors_of(const pybind11::tuple &of) {
  if (of.empty())
    return {};
  expect(of, 7, "tensors");
  return {at<std::int64_t>(of, 0),         pointer_at<char *>(of, 1),
          pointer_at<std::int64_t>(of, 2), pointer_at<std::int64_t>(of, 3),
          pointer_at<std::int32_t>(of, 4), pointer_at<std::int64_t>(of, 5),
          at<std::int64_t>(of, 6)};
}

// Up to kMostHorizons horizons in ascending order, and where each stood.
inline Horizons horizons_of(const std::vector<std::int64_t> &given) {
  if (given.empty() || given.size() > kMostHorizons)
    throw std::invalid_argument("a launch takes 1 to " + std::to_string(kMostHorizons) +
                                " horizons, not " + std::to_string(given.size()));
  Horizons out = {};
  out.count = int(given.size());
  std::iota(out.slot, out.slot + out.count, 0);
  std::stable_sort(out.slot, out.slot + out.count,
                   [&](int a, int b) { return given[a] < given[b]; });
  for (int i = 0; i < out.count; ++i)
    out.ascending[i] = given[out.slot[i]];
  if (out.ascending[0] < 1)
    throw std::invalid_argument("a horizon is " + std::to_string(out.ascending[0]) +
                                "; horizons are at least 1 snapshot");
  return out;
}

// (device, stream): makes the device current while a stage is launched.
class Target {
public:
  explicit Target(const pybind11::tuple &of)
      : device(device_of(at<int>(of, 0))), stream(pointer<CUstream_st>(at<Address>(of, 1))),
        scope_(device.number) {
    check_stream(device.number, stream);
  }

  const Device &device;
  const Stream stream;

private:
  DeviceScope scope_;
};

} // namespace koopcore::cuda
