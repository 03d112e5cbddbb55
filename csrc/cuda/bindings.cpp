// Python bindings of _cuda: device addresses in, kernels launched on the caller's stream; nothing
// waits.
//
// Mirrors cpu/bindings.cpp.
#include "cuda/arguments.h"
#include "cuda/code.h"

namespace koopcore::cuda {
namespace {

namespace py = pybind11;
using Sizes = std::vector<std::int64_t>;

// Where Gram matrices go, by the name of the layout.
GramLayout layout_of(Address data, int n, bool side_by_side) {
  const std::int64_t entries = packed_size(n);
  if (side_by_side)
    return {pointer<double>(data), entries * kBatch, 1, kBatch};
  return {pointer<double>(data), entries * kBatch, entries, 1};
}

// (coefficients, rank, residual, condition, hindcast)
CompanionArrays companion_of(const py::tuple &out) {
  expect(out, 5, "the outputs of a fit");
  return {pointer<double>(at<Address>(out, 0)), pointer<std::int64_t>(at<Address>(out, 1)),
          pointer<double>(at<Address>(out, 2)), pointer<double>(at<Address>(out, 3)),
          pointer<double>(at<Address>(out, 4))};
}

void bind_queries(py::module_ &m) {
  m.attr("most_horizons") = kMostHorizons;
  m.attr("batch") = kBatch;
  m.attr("tensor_block") = kTensorBlock;
  m.def("device_count", &device_count, "CUDA devices of this machine; 0 without a driver.");
  m.def("device_problem", &device_problem, "Why device_count() is 0; '' where it is not.");
  m.def(
      "architecture", [](int device) { return device_of(device).architecture; }, py::arg("device"),
      "90 for a device of compute capability 9.0.");
  m.def(
      "code", [](int device) { return device_of(device).code; }, py::arg("device"),
      "The same of what the code that runs on the device was compiled for.");
  m.def(
      "check_device", [](int device) { device_of(device); }, py::arg("device"),
      "Raises RuntimeError if this module has no code for the device.");
  m.def(
      "fast_double", [](int device) { return fast_double(device_of(device).code); },
      py::arg("device"), "Whether the device's code takes fp64 to run at half the rate of fp32.");
  m.def(
      "gram_noise",
      [](int device, int n, bool is_double) { return gram_noise(device_of(device), n, is_double); },
      py::arg("device"), py::arg("n"), py::arg("is_double"),
      "Relative error of Gram matrices on this device in units of fp64 sums.");
}

void bind_companion(py::module_ &m) {
  m.def("gram_space", [](const py::tuple &plan, int n) { return gram_space(plan_of(plan), n); });
  m.def("gram",
        [](const py::tuple &window, const py::tuple &groups, const py::tuple &plan, Address out,
           bool side_by_side, Address space, bool wide, const py::tuple &target) {
          const Target on(target);
          const Window w = window_of(window);
          gram(w, groups_of(groups), plan_of(plan), layout_of(out, w.n, side_by_side),
               pointer<double>(space), wide, on.stream);
        });
  m.def("solve_space", [](std::int64_t groups, int n, int device) {
    return solve_space(device_of(device), groups, n);
  });
  m.def("solve_bytes", &solve_bytes, py::arg("n"),
        "Bytes of shared memory that a block of `solve` takes where a block may have so many.");
  m.def("deficient_bytes", &deficient_bytes, py::arg("n"),
        "The same of `roll_deficient`, for the linear model.");
  m.def("solve", [](Address gram, std::int64_t groups, int n, bool affine, int holdout,
                    double noise, const py::tuple &out, Address space, const py::tuple &target) {
    const Target on(target);
    solve(on.device, pointer<const double>(gram), groups, n, affine, holdout, noise,
          companion_of(out), pointer<double>(space), on.stream);
  });
  m.def("rollout_space",
        [](std::int64_t groups, int columns, bool affine, std::int64_t last, int device) {
          return rollout_space(device_of(device), groups, columns, affine, last);
        });
  m.def("rollout", [](Address coefficients, std::int64_t groups, int columns, bool affine,
                      const Sizes &horizons, Address weights, Address growth, Address space,
                      const py::tuple &target) {
    const Target on(target);
    rollout(on.device, pointer<const double>(coefficients), groups, columns, affine,
            horizons_of(horizons), pointer<double>(weights), pointer<double>(growth),
            pointer<double>(space), on.stream);
  });
  m.def("deficient_space",
        [](std::int64_t groups, int n, bool affine, const Sizes &horizons, int device) {
          return deficient_space(device_of(device), groups, n, affine, horizons_of(horizons));
        });
  m.def("roll_deficient",
        [](const py::tuple &window, const py::tuple &groups, Address gram, Address rank,
           bool affine, double noise, const Sizes &horizons, Address weights, Address growth,
           Address space, const py::tuple &target) {
          const Target on(target);
          roll_deficient(on.device, window_of(window), groups_of(groups),
                         pointer<const double>(gram), pointer<const std::int64_t>(rank), affine,
                         noise, horizons_of(horizons), pointer<double>(weights),
                         pointer<double>(growth), pointer<double>(space), on.stream);
        });
  m.def("combine", [](const py::tuple &window, const py::tuple &groups, const py::tuple &plan,
                      Address weights, int n_horizons, const py::tuple &out,
                      const py::tuple &parameters, const py::tuple &target) {
    const Target on(target);
    combine(window_of(window), groups_of(groups), plan_of(plan), pointer<const double>(weights),
            n_horizons, output_of(out), tensors_of(parameters), on.stream);
  });
}

void bind_one_pass(py::module_ &m) {
  m.def("one_pass_bytes", &one_pass_bytes, py::arg("n"), py::arg("columns"), py::arg("warps"),
        py::arg("horizons"), py::arg("is_double"),
        "Bytes of shared memory that a block of `one_pass` needs.");
  // share: (group, count, columns, warps); how: (affine, holdout, noise).
  m.def("one_pass",
        [](const py::tuple &window, const py::tuple &groups, const py::tuple &share,
           const py::tuple &how, const Sizes &horizons, const py::tuple &fields, Address gram,
           const py::tuple &out, const py::tuple &parameters, const py::tuple &target) {
          const Target on(target);
          expect(share, 4, "a share");
          expect(how, 3, "how to fit");
          one_pass(on.device, window_of(window), groups_of(groups),
                   {pointer_at<std::int64_t>(share, 0), at<std::int64_t>(share, 1),
                    at<int>(share, 2), at<int>(share, 3)},
                   {at<bool>(how, 0), at<int>(how, 1), at<double>(how, 2)},
                   horizons.empty() ? Horizons{} : horizons_of(horizons), companion_of(fields),
                   pointer<double>(gram), output_of(out), tensors_of(parameters), on.stream);
        });
  m.def("combine_deficient", [](const py::tuple &window, const py::tuple &groups, Address rank,
                                int columns, Address weights, int n_horizons, const py::tuple &out,
                                const py::tuple &parameters, const py::tuple &target) {
    const Target on(target);
    combine_deficient(window_of(window), groups_of(groups), pointer<const std::int64_t>(rank),
                      columns, pointer<const double>(weights), n_horizons, output_of(out),
                      tensors_of(parameters), on.stream);
  });
}

void bind_dense(py::module_ &m) {
  m.def("project_space", [](std::int64_t groups, int size, int device) {
    return project_space(device_of(device), groups, size);
  });
  m.def("project", [](std::int64_t groups, int size, int rank, double ridge, bool raw,
                      const py::tuple &arrays, Address space, const py::tuple &target) {
    const Target on(target);
    expect(arrays, 8, "the arrays of a dense fit");
    const ProjectArrays of{pointer_at<double>(arrays, 0),
                           pointer_at<double>(arrays, 1),
                           pointer_at<double>(arrays, 2),
                           pointer<double>(at<Address>(arrays, 3)),
                           pointer<double>(at<Address>(arrays, 4)),
                           pointer<double>(at<Address>(arrays, 5)),
                           pointer<std::int64_t>(at<Address>(arrays, 6)),
                           pointer<double>(at<Address>(arrays, 7))};
    project(on.device, groups, size, rank, ridge, raw, of, pointer<double>(space), on.stream);
  });
  m.def("rollout_dense_space",
        [](std::int64_t groups, int size, const Sizes &horizons, int device) {
          return rollout_dense_space(device_of(device), groups, size, horizons_of(horizons));
        });
  m.def("rollout_dense", [](Address operators, Address start, std::int64_t groups, int size,
                            bool affine, const Sizes &horizons, Address states, Address growth,
                            Address space, const py::tuple &target) {
    const Target on(target);
    rollout_dense(on.device, pointer<const double>(operators), pointer<const double>(start), groups,
                  size, affine, horizons_of(horizons), pointer<double>(states),
                  pointer<double>(growth), pointer<double>(space), on.stream);
  });
}

void bind_features(py::module_ &m) {
  m.def("feature_gram_space", [](std::int64_t groups, int size, int device) {
    return feature_gram_space(device_of(device), groups, size);
  });
  m.def("feature_gram",
        [](const py::tuple &window, const py::tuple &groups, int size, bool affine,
           const Sizes &stops, Address out, Address space, const py::tuple &target) {
          const Target on(target);
          feature_gram(on.device, window_of(window), groups_of(groups), size, affine,
                       horizons_of(stops), pointer<double>(out), pointer<double>(space), on.stream);
        });
  m.def("gather", [](const py::tuple &window, const py::tuple &groups, int size, Address out,
                     const py::tuple &target) {
    const Target on(target);
    gather(window_of(window), groups_of(groups), size, pointer<double>(out), on.stream);
  });
  m.def("scatter", [](const py::tuple &groups, int size, Address values, int n_rows,
                      const py::tuple &out, const py::tuple &target) {
    const Target on(target);
    scatter(groups_of(groups), size, pointer<const double>(values), n_rows, output_of(out),
            on.stream);
  });
}

void bind_capture(py::module_ &m) {
  m.def("copy_tensors", [](const py::tuple &tensors, Address row, int kind, bool into_row,
                           const py::tuple &target) {
    const Target on(target);
    copy_tensors(tensors_of(tensors), pointer<char>(row), Kind(kind), into_row, on.stream);
  });
}

} // namespace
} // namespace koopcore::cuda

#ifndef KOOPCORE_CUDA_MODULE
#define KOOPCORE_CUDA_MODULE _cuda
#endif

PYBIND11_MODULE(KOOPCORE_CUDA_MODULE, m) {
  using namespace koopcore::cuda;
  m.doc() = "koopcore kernels for CUDA devices";
  bind_queries(m);
  bind_companion(m);
  bind_one_pass(m);
  bind_dense(m);
  bind_features(m);
  bind_capture(m);
}
