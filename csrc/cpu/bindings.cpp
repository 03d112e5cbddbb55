// Python bindings of _cpu: arrays in, checked and turned into pointers; the GIL is released for
// work.
#include "cpu/arguments.h"
#include "cpu/engine.h"
#include "cpu/isa.h"
#include "cpu/plan.h"
#include "cpu/threads.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <numeric>

namespace koopcore::cpu {
namespace {

namespace py = pybind11;

py::array_t<double> gram_of(const py::array &array, const Index &order, const py::tuple &segments) {
  const SnapshotArgument snapshots(array, order);
  const GroupsArgument groups(segments);
  py::array_t<double> out({groups.view.count, std::int64_t(packed_size(snapshots.view.n))});
  double *to = out.mutable_data();
  const Kernels &kernels = chosen_kernels();
  py::gil_scoped_release release;
  gram(kernels, snapshots.view, groups.view, to);
  return out;
}

void check_model(int n, bool affine, int holdout) {
  if (n - 1 - int(affine) < 1)
    throw std::invalid_argument(
        "a window of " + std::to_string(n) + " snapshots leaves no column " +
        "for the companion fit; give at least " + std::to_string(2 + int(affine)));
  if (holdout < 0)
    throw std::invalid_argument("holdout is " + std::to_string(holdout) + "; give 0 or more");
}

py::tuple solve_of(const Doubles &gram, int n, bool affine, int holdout) {
  check_model(n, affine, holdout);
  if (gram.ndim() != 2 || gram.shape(1) != packed_size(n))
    throw std::invalid_argument("gram must have the shape (n_groups, " +
                                std::to_string(packed_size(n)) + ") for n = " + std::to_string(n));
  const std::int64_t count = gram.shape(0);
  CompanionResult result(count, n - 1 - int(affine));
  const double *from = gram.data();
  const Kernels &kernels = chosen_kernels();
  {
    py::gil_scoped_release release;
    solve(kernels, from, count, n, affine, holdout, result.view);
  }
  return result.tuple;
}

py::tuple gram_solve_of(const py::array &array, const Index &order, const py::tuple &segments,
                        bool affine, int holdout, const py::object &ahead) {
  const SnapshotArgument snapshots(array, order);
  const GroupsArgument groups(segments);
  check_model(snapshots.view.n, affine, holdout);
  const AheadArgument at(ahead, snapshots.view.size);
  CompanionResult result(groups.view.count, snapshots.view.n - 1 - int(affine));
  const Kernels &kernels = chosen_kernels();
  {
    py::gil_scoped_release release;
    gram_solve(kernels, snapshots.view, groups.view,
               {snapshots.view.n, affine, holdout, result.view}, at.horizons, at.output);
  }
  return result.tuple;
}

py::tuple rollout_of(const Doubles &coefficients, bool affine,
                     const std::vector<std::int64_t> &horizons) {
  if (coefficients.ndim() != 2 || coefficients.shape(1) < 1)
    throw std::invalid_argument("coefficients must have the shape (n_groups, N) with N >= 1");
  const SortedHorizons sorted(horizons);
  const std::int64_t count = coefficients.shape(0), columns = coefficients.shape(1);
  const std::int64_t n = columns + 1 + int(affine), steps = std::int64_t(horizons.size());
  py::array_t<double> weights({steps, count, n});
  py::array_t<double> growth({steps, count});
  const RolloutJob job{
      coefficients.data(),  count, int(columns), affine, sorted.view(), weights.mutable_data(),
      growth.mutable_data()};
  const Kernels &kernels = chosen_kernels();
  {
    py::gil_scoped_release release;
    rollout(kernels, job);
  }
  return py::make_tuple(std::move(weights), std::move(growth));
}

void combine_of(const py::array &array, const Index &order, const py::tuple &segments,
                const Doubles &weights, const py::array &out) {
  const SnapshotArgument snapshots(array, order);
  const GroupsArgument groups(segments);
  if (weights.ndim() != 3 || weights.shape(1) != groups.view.count ||
      weights.shape(2) != snapshots.view.n)
    throw std::invalid_argument("weights must have the shape (n_horizons, n_groups, n) = (…, " +
                                std::to_string(groups.view.count) + ", " +
                                std::to_string(snapshots.view.n) + ")");
  const OutputArgument to(out, weights.shape(0), snapshots.view.size);
  const CombineJob job{snapshots.view,    groups.view,           weights.data(),
                       groups.view.count, int(weights.shape(0)), to.view};
  const Kernels &kernels = chosen_kernels();
  py::gil_scoped_release release;
  combine(kernels, job);
}

void companion_endpoint_of(const py::array &array, const Index &order, const py::tuple &segments,
                           const Doubles &coefficients, bool affine,
                           const std::vector<std::int64_t> &horizons, const py::array &out) {
  const SnapshotArgument snapshots(array, order);
  const GroupsArgument groups(segments);
  const int columns = snapshots.view.n - 1 - int(affine);
  if (columns < 1 || coefficients.ndim() != 2 || coefficients.shape(0) != groups.view.count ||
      coefficients.shape(1) != columns)
    throw std::invalid_argument("coefficients must have the shape (n_groups, N) = (" +
                                std::to_string(groups.view.count) + ", " + std::to_string(columns) +
                                ") with N >= 1");
  const SortedHorizons sorted(horizons);
  const OutputArgument to(out, std::int64_t(horizons.size()), snapshots.view.size);
  const Kernels &kernels = chosen_kernels();
  py::gil_scoped_release release;
  companion_endpoint(kernels, snapshots.view, groups.view, coefficients.data(), affine,
                     sorted.view(), to.view);
}

// m of groups of equal size; the stages check that they are.
int equal_size(const Groups &groups) {
  if (groups.count == 0)
    throw std::invalid_argument("the partition has no groups; this stage needs at least one");
  return int(group_size(groups, 0));
}

py::array_t<double> feature_gram_of(const py::array &array, const Index &order,
                                    const py::tuple &segments, bool affine,
                                    const std::vector<std::int64_t> &stops) {
  const SnapshotArgument snapshots(array, order);
  const GroupsArgument groups(segments);
  const SortedHorizons sorted(stops);
  for (std::int64_t stop : stops)
    if (stop < 2 + int(affine) || stop > snapshots.view.n)
      throw std::invalid_argument("a stop is " + std::to_string(stop) + "; give " +
                                  std::to_string(2 + int(affine)) + " to " +
                                  std::to_string(snapshots.view.n) + " snapshots");
  const std::int64_t m = equal_size(groups.view), count = std::int64_t(stops.size());
  py::array_t<double> out({count, groups.view.count, std::int64_t(2), m, m});
  const MomentsJob job{snapshots.view, groups.view,   int(m),
                       affine,         sorted.view(), out.mutable_data()};
  const Kernels &kernels = chosen_kernels();
  py::gil_scoped_release release;
  feature_gram(kernels, job);
  return out;
}

// (operator, whitener, start, rank, condition), all of the full width N.
py::tuple project_of(const Doubles &a, const Doubles &h, const Doubles &g, int rank, double ridge,
                     bool raw) {
  const bool good = a.ndim() == 3 && h.ndim() == 3 && g.ndim() == 2 && a.shape(1) == a.shape(2) &&
                    h.shape(0) == a.shape(0) && h.shape(1) == a.shape(1) &&
                    h.shape(2) == a.shape(1) && g.shape(0) == a.shape(0) &&
                    g.shape(1) == a.shape(1);
  if (!good)
    throw std::invalid_argument("a and h must have the shape (n_groups, N, N) and g (n_groups, N)");
  if (rank < 0 || !(ridge >= 0.0))
    throw std::invalid_argument("rank and ridge must not be negative");
  const std::int64_t groups = a.shape(0), size = a.shape(1);
  py::array_t<double> operators({groups, size, size}), whitener({groups, size, size});
  py::array_t<double> start({groups, size}), condition(groups);
  py::array_t<std::int64_t> ranks(groups);
  const std::ptrdiff_t step = size * size;
  const ProjectJob job{int(size),
                       rank,
                       ridge,
                       raw,
                       a.data(),
                       h.data(),
                       step,
                       step,
                       g.data(),
                       operators.mutable_data(),
                       whitener.mutable_data(),
                       start.mutable_data(),
                       ranks.mutable_data(),
                       condition.mutable_data()};
  const Kernels &kernels = chosen_kernels();
  {
    py::gil_scoped_release release;
    project(kernels, job, groups);
  }
  return py::make_tuple(std::move(operators), std::move(whitener), std::move(start),
                        std::move(ranks), std::move(condition));
}

py::tuple rollout_dense_of(const Doubles &operators, const Doubles &start, bool affine,
                           const std::vector<std::int64_t> &horizons) {
  if (operators.ndim() != 3 || start.ndim() != 2 || operators.shape(0) != start.shape(0) ||
      operators.shape(1) != start.shape(1) || operators.shape(2) != start.shape(1))
    throw std::invalid_argument("operator must have the shape (n_groups, r, r) and start "
                                "(n_groups, r)");
  const SortedHorizons sorted(horizons);
  const std::int64_t groups = start.shape(0), size = start.shape(1);
  const std::int64_t count = std::int64_t(horizons.size());
  py::array_t<double> states({count, groups, size});
  py::array_t<double> growth({count, groups});
  const DenseRolloutJob job{
      operators.data(),      start.data(),         groups, int(size), affine, sorted.view(),
      states.mutable_data(), growth.mutable_data()};
  const Kernels &kernels = chosen_kernels();
  {
    py::gil_scoped_release release;
    rollout_dense(kernels, job);
  }
  return py::make_tuple(std::move(states), std::move(growth));
}

// (rank, condition, residual, hindcast, operator, whitener, start, readout), of the full width m;
// with endpoints ahead the last four are None.
py::tuple feature_fit_of(const py::array &array, const Index &order, const py::tuple &segments,
                         bool affine, int holdout, const py::object &ahead) {
  const SnapshotArgument snapshots(array, order);
  const GroupsArgument groups(segments);
  const std::int64_t m = equal_size(groups.view), count = groups.view.count;
  if (holdout < 1 || snapshots.view.n < 2 + int(affine))
    throw std::invalid_argument("a fit needs a holdout of at least 1 and " +
                                std::to_string(2 + int(affine)) + " snapshots");
  const AheadArgument at(ahead, snapshots.view.size);
  py::array_t<double> condition(count), residual(count), hindcast(count);
  py::array_t<std::int64_t> ranks(count);
  FeatureFitJob job{};
  job.window = snapshots.view;
  job.groups = groups.view;
  job.m = int(m);
  job.affine = affine;
  job.holdout = holdout;
  job.ranks = ranks.mutable_data();
  job.condition = condition.mutable_data();
  job.residual = residual.mutable_data();
  job.hindcast = hindcast.mutable_data();
  job.horizons = at.horizons;
  job.out = at.output;
  py::object kept[4] = {py::none(), py::none(), py::none(), py::none()};
  if (ahead.is_none()) {
    py::array_t<double> operators({count, m, m}), whitener({count, m, m}), readout({count, m, m});
    py::array_t<double> start({count, m});
    job.operators = operators.mutable_data();
    job.whitener = whitener.mutable_data();
    job.start = start.mutable_data();
    job.readout = readout.mutable_data();
    kept[0] = operators;
    kept[1] = whitener;
    kept[2] = start;
    kept[3] = readout;
  }
  const Kernels &kernels = chosen_kernels();
  {
    py::gil_scoped_release release;
    feature_fit(kernels, job);
  }
  return py::make_tuple(ranks, condition, residual, hindcast, kept[0], kept[1], kept[2], kept[3]);
}

void feature_endpoint_of(const py::array &array, const Index &order, const py::tuple &segments,
                         const Doubles &operators, const Doubles &start, const Doubles &readout,
                         bool affine, const std::vector<std::int64_t> &horizons,
                         const py::array &out) {
  const SnapshotArgument snapshots(array, order);
  const GroupsArgument groups(segments);
  const std::int64_t m = equal_size(groups.view), count = groups.view.count;
  if (operators.ndim() != 3 || start.ndim() != 2 || readout.ndim() != 3 ||
      operators.shape(0) != count || start.shape(0) != count || readout.shape(0) != count ||
      operators.shape(1) != start.shape(1) || operators.shape(2) != start.shape(1) ||
      readout.shape(1) != m || readout.shape(2) != start.shape(1))
    throw std::invalid_argument("operator must have the shape (n_groups, r, r), start (n_groups, "
                                "r) and readout (n_groups, m, r)");
  const SortedHorizons sorted(horizons);
  const OutputArgument to(out, std::int64_t(horizons.size()), snapshots.view.size);
  const FeatureEndpointJob job{snapshots.view, groups.view,      int(m),       int(start.shape(1)),
                               affine,         operators.data(), start.data(), readout.data(),
                               sorted.view(),  to.view};
  const Kernels &kernels = chosen_kernels();
  py::gil_scoped_release release;
  feature_endpoint(kernels, job);
}

py::array_t<double> gather_of(const py::array &array, const Index &order,
                              const py::tuple &segments) {
  const SnapshotArgument snapshots(array, order);
  const GroupsArgument groups(segments);
  const std::int64_t m = equal_size(groups.view), rows = snapshots.view.n;
  py::array_t<double> out({rows, groups.view.count, m});
  const GatherJob job{snapshots.view.rows, int(rows), snapshots.view.step, snapshots.view.is_double,
                      groups.view,         int(m),    out.mutable_data()};
  const Kernels &kernels = chosen_kernels();
  py::gil_scoped_release release;
  gather(kernels, job, snapshots.view.size);
  return out;
}

void scatter_of(const py::tuple &segments, const Doubles &values, const py::array &out) {
  const GroupsArgument groups(segments);
  const std::int64_t m = equal_size(groups.view);
  if (values.ndim() != 3 || values.shape(1) != groups.view.count || values.shape(2) != m)
    throw std::invalid_argument("values must have the shape (n_horizons, n_groups, m) = (…, " +
                                std::to_string(groups.view.count) + ", " + std::to_string(m) + ")");
  if (out.ndim() != 2)
    throw std::invalid_argument("out must have the shape (n_horizons, size)");
  const OutputArgument to(out, values.shape(0), out.shape(1));
  const ScatterJob job{values.data(), int(values.shape(0)), groups.view, int(m), to.view};
  const std::int64_t size = out.shape(1);
  const Kernels &kernels = chosen_kernels();
  py::gil_scoped_release release;
  scatter(kernels, job, size);
}

} // namespace
} // namespace koopcore::cpu

PYBIND11_MODULE(_cpu, m) {
  namespace py = pybind11;
  using namespace koopcore::cpu;
  m.doc() = "koopcore kernels for CPUs";
  m.def(
      "isa", [] { return isa_name(chosen_isa()); },
      "Instruction set in use: avx512, avx2 or portable. Set KOOPCORE_ISA to force one.");
  m.def(
      "lanes", [] { return chosen_kernels().lanes; },
      "Groups that are solved at once: doubles per vector register of isa().");
  m.def(
      "supported_isas",
      [] {
        std::vector<std::string> names;
        for (Isa isa : supported_isas())
          names.emplace_back(isa_name(isa));
        return names;
      },
      "Instruction sets that were compiled in and that this processor runs, slowest first.");
  m.def("force_isa", &force_isa, py::arg("name"),
        "Use this instruction set from now on; '' returns to the environment's choice.");
  m.def("num_threads", &thread_count, "Threads that a large call uses.");
  m.def("set_num_threads", &set_thread_count, py::arg("count"),
        "Use at most `count` threads; 0 returns to KOOPCORE_NUM_THREADS or the CPU affinity.");
  m.def("gram", &gram_of);
  m.def("solve", &solve_of);
  m.def("gram_solve", &gram_solve_of);
  m.def("rollout", &rollout_of);
  m.def("combine", &combine_of);
  m.def("feature_gram", &feature_gram_of);
  m.def("feature_fit", &feature_fit_of);
  m.def("companion_endpoint", &companion_endpoint_of);
  m.def("feature_endpoint", &feature_endpoint_of);
  m.def("project", &project_of);
  m.def("rollout_dense", &rollout_dense_of);
  m.def("gather", &gather_of);
  m.def("scatter", &scatter_of);
}
