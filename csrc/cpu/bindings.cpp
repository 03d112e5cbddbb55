// Python bindings of _cpu: arrays in, checked and turned into pointers; the GIL is released for
// work.
//
// Mirrors cuda/bindings.cpp.
#include "algorithms/lanes.h"
#include "cpu/arguments.h"
#include "cpu/isa.h"
#include "cpu/stages.h"
#include "cpu/threads.h"

#include <complex>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace koopcore::cpu {
namespace {

namespace py = pybind11;
using Doubles = py::array_t<double, py::array::c_style | py::array::forcecast>;
using Sizes = std::vector<std::int64_t>;

// Calls stage(kernels of the current instruction set, arguments …) without the GIL.
template <class Stage, class... Arguments> void work(Stage &&stage, const Arguments &...arguments) {
  const Kernels &kernels = *current_isa().kernels;
  const py::gil_scoped_release release;
  stage(kernels, arguments...);
}

// A stage that is one kernel, `together` groups at a time: by default one per lane.
template <class Job>
void run(Batch<Job> Kernels::*kernel, const Job &job, std::int64_t together = 0) {
  work([&](const Kernels &kernels) {
    run(kernels.*kernel, job, together > 0 ? together : kernels.lanes);
  });
}

constexpr std::int64_t kCopiedTogether = 256; // groups: a copy has no use for lanes

void check_model(int n, bool affine, int holdout) {
  if (n - 1 - int(affine) < 1)
    throw std::invalid_argument(
        "a window of " + std::to_string(n) + " snapshots leaves no column " +
        "for the companion fit; give at least " + std::to_string(2 + int(affine)));
  if (holdout < 0)
    throw std::invalid_argument("holdout is " + std::to_string(holdout) + "; give 0 or more");
}

void bind_queries(py::module_ &m) {
  py::class_<CheckedGroups>(m, "Groups",
                            "The segments of a partition, checked; what the stages take.")
      .def(py::init<const py::tuple &>());
  py::implicitly_convertible<py::tuple, CheckedGroups>();
  m.def(
      "isa", [] { return current_isa().name; },
      "Instruction set in use: avx512, avx2 or portable. Set KOOPCORE_ISA to force one.");
  m.def(
      "lanes", [] { return current_isa().kernels->lanes; },
      "Groups that are solved at once: doubles per vector register of isa().");
  m.def(
      "supported_isas",
      [] {
        std::vector<std::string> names;
        for (const Isa *isa : supported_isas())
          names.emplace_back(isa->name);
        return names;
      },
      "Instruction sets that were compiled in and that this processor runs, slowest first.");
  m.def("force_isa", &force_isa, py::arg("name"),
        "Use this instruction set from now on; '' returns to the environment's choice.");
  m.def("num_threads", &thread_count, "Threads that a large call uses.");
  m.def("set_num_threads", &set_thread_count, py::arg("count"),
        "Use at most `count` threads; 0 returns to KOOPCORE_NUM_THREADS or the CPU affinity.");
}

void bind_companion(py::module_ &m) {
  m.def("gram", [](const py::array &array, const Index &order, const CheckedGroups &segments) {
    const SnapshotArgument snapshots(array, order);
    const GroupsArgument groups(segments, snapshots.view.size);
    py::array_t<double> out({groups.view.count, std::int64_t(packed_size(snapshots.view.n))});
    work(gram, snapshots.view, groups.view, out.mutable_data());
    return out;
  });
  m.def("solve", [](const Doubles &gram, int n, bool affine, int holdout) {
    check_model(n, affine, holdout);
    if (gram.ndim() != 2 || gram.shape(1) != packed_size(n))
      throw std::invalid_argument("gram must have the shape (n_groups, " +
                                  std::to_string(packed_size(n)) +
                                  ") for n = " + std::to_string(n));
    const std::int64_t groups = gram.shape(0);
    CompanionResult result(groups, n - 1 - int(affine));
    work(solve, gram.data(), groups, SolveJob{n, affine, holdout, result.view});
    return result.tuple;
  });
  m.def("gram_solve", [](const py::array &array, const Index &order, const CheckedGroups &segments,
                         bool affine, int holdout, const py::object &ahead) {
    const SnapshotArgument snapshots(array, order);
    const GroupsArgument groups(segments, snapshots.view.size);
    const int n = snapshots.view.n;
    check_model(n, affine, holdout);
    const AheadArgument at(ahead, snapshots.view.size);
    CompanionResult result(groups.view.count, n - 1 - int(affine));
    work(gram_solve, snapshots.view, groups.view, SolveJob{n, affine, holdout, result.view},
         at.horizons, at.output);
    return py::make_tuple(result.tuple, result.whole());
  });
  m.def("rollout", [](const Doubles &coefficients, bool affine, const Sizes &horizons) {
    if (coefficients.ndim() != 2 || coefficients.shape(1) < 1)
      throw std::invalid_argument("coefficients must have the shape (n_groups, N) with N >= 1");
    const SortedHorizons sorted(horizons);
    const std::int64_t groups = coefficients.shape(0), columns = coefficients.shape(1);
    const std::int64_t n = columns + 1 + int(affine), steps = std::int64_t(horizons.size());
    py::array_t<double> weights({steps, groups, n}), growth({steps, groups});
    run(&Kernels::rollout, {coefficients.data(), groups, int(columns), affine, sorted.view(),
                            weights.mutable_data(), growth.mutable_data()});
    return py::make_tuple(std::move(weights), std::move(growth));
  });
  m.def("combine", [](const py::array &array, const Index &order, const CheckedGroups &segments,
                      const Doubles &weights, const py::array &out) {
    const SnapshotArgument snapshots(array, order);
    const GroupsArgument groups(segments, snapshots.view.size);
    if (weights.ndim() != 3 || weights.shape(1) != groups.view.count ||
        weights.shape(2) != snapshots.view.n)
      throw std::invalid_argument("weights must have the shape (n_horizons, n_groups, n) = (…, " +
                                  std::to_string(groups.view.count) + ", " +
                                  std::to_string(snapshots.view.n) + ")");
    const OutputArgument to(out, weights.shape(0), snapshots.view.size);
    work(combine, CombineJob{snapshots.view, groups.view, weights.data(), groups.view.count,
                             int(weights.shape(0)), to.view});
  });
  m.def("companion_endpoint",
        [](const py::array &array, const Index &order, const CheckedGroups &segments,
           const Doubles &coefficients, bool affine, const Sizes &horizons, const py::array &out) {
          const SnapshotArgument snapshots(array, order);
          const GroupsArgument groups(segments, snapshots.view.size);
          const int columns = snapshots.view.n - 1 - int(affine);
          if (columns < 1 || coefficients.ndim() != 2 ||
              coefficients.shape(0) != groups.view.count || coefficients.shape(1) != columns)
            throw std::invalid_argument("coefficients must have the shape (n_groups, N) = (" +
                                        std::to_string(groups.view.count) + ", " +
                                        std::to_string(columns) + ") with N >= 1");
          const SortedHorizons sorted(horizons);
          const OutputArgument to(out, std::int64_t(horizons.size()), snapshots.view.size);
          work(companion_endpoint, snapshots.view, groups.view, coefficients.data(), affine,
               sorted.view(), to.view);
        });
}

void bind_dense(py::module_ &m) {
  // (operator, whitener, start, rank, condition), all of the full width N.
  m.def("project", [](const Doubles &a, const Doubles &h, const Doubles &g, int rank, double ridge,
                      bool raw) {
    const bool good = a.ndim() == 3 && h.ndim() == 3 && g.ndim() == 2 && a.shape(1) == a.shape(2) &&
                      h.shape(0) == a.shape(0) && h.shape(1) == a.shape(1) &&
                      h.shape(2) == a.shape(1) && g.shape(0) == a.shape(0) &&
                      g.shape(1) == a.shape(1);
    if (!good)
      throw std::invalid_argument(
          "a and h must have the shape (n_groups, N, N) and g (n_groups, N)");
    if (rank < 0 || !(ridge >= 0.0))
      throw std::invalid_argument("rank and ridge must not be negative");
    const std::int64_t groups = a.shape(0), size = a.shape(1);
    py::array_t<double> operators({groups, size, size}), whitener({groups, size, size});
    py::array_t<double> start({groups, size}), condition(groups);
    py::array_t<std::int64_t> ranks(groups);
    run(&Kernels::project, {groups, int(size), rank, ridge, raw, a.data(), h.data(), g.data(),
                            operators.mutable_data(), whitener.mutable_data(), start.mutable_data(),
                            ranks.mutable_data(), condition.mutable_data()});
    return py::make_tuple(std::move(operators), std::move(whitener), std::move(start),
                          std::move(ranks), std::move(condition));
  });
  m.def("rollout_dense", [](const Doubles &operators, const Doubles &start, bool affine,
                            const Sizes &horizons) {
    if (operators.ndim() != 3 || start.ndim() != 2 || operators.shape(0) != start.shape(0) ||
        operators.shape(1) != start.shape(1) || operators.shape(2) != start.shape(1))
      throw std::invalid_argument("operator must have the shape (n_groups, r, r) and start "
                                  "(n_groups, r)");
    const SortedHorizons sorted(horizons);
    const std::int64_t groups = start.shape(0), size = start.shape(1);
    const std::int64_t count = std::int64_t(horizons.size());
    py::array_t<double> states({count, groups, size}), growth({count, groups});
    run(&Kernels::rollout_dense, {operators.data(), start.data(), groups, int(size), affine,
                                  sorted.view(), states.mutable_data(), growth.mutable_data()});
    return py::make_tuple(std::move(states), std::move(growth));
  });
}

void bind_features(py::module_ &m) {
  m.def("feature_gram", [](const py::array &array, const Index &order,
                           const CheckedGroups &segments, bool affine, const Sizes &stops) {
    const SnapshotArgument snapshots(array, order);
    const EqualGroupsArgument groups(segments, snapshots.view.size);
    const SortedHorizons sorted(stops);
    for (std::int64_t stop : stops)
      if (stop < 2 + int(affine) || stop > snapshots.view.n)
        throw std::invalid_argument("a stop is " + std::to_string(stop) + "; give " +
                                    std::to_string(2 + int(affine)) + " to " +
                                    std::to_string(snapshots.view.n) + " snapshots");
    py::array_t<double> out({std::int64_t(stops.size()), groups.view.count, std::int64_t(2),
                             std::int64_t(groups.m), std::int64_t(groups.m)});
    run(&Kernels::feature_gram,
        {snapshots.view, groups.view, groups.m, affine, sorted.view(), out.mutable_data()});
    return out;
  });
  // (rank, condition, residual, hindcast, operator, whitener, start, readout), of the full width m;
  // with endpoints ahead the last four are None. passes: 0, 1, 2 as `Passes`; a second one keeps at
  // most `rank` singular values (0: all).
  m.def("feature_fit",
        [](const py::array &array, const Index &order, const CheckedGroups &segments, bool affine,
           int holdout, const py::object &ahead, int passes, int rank, bool ranged) {
          const SnapshotArgument snapshots(array, order);
          const EqualGroupsArgument groups(segments, snapshots.view.size);
          const std::int64_t m = groups.m, count = groups.view.count;
          if (passes < 0 || passes > 3)
            throw std::invalid_argument("passes is " + std::to_string(passes) + "; give 0 to 3");
          if (holdout < 1 || snapshots.view.n < 2 + int(affine))
            throw std::invalid_argument("a fit needs a holdout of at least 1 and " +
                                        std::to_string(2 + int(affine)) + " snapshots");
          const AheadArgument at(ahead, snapshots.view.size);
          py::array_t<std::int64_t> ranks(count);
          py::array_t<double> condition(count), residual(count), hindcast(count);
          FeatureFitJob job{};
          job.window = snapshots.view;
          job.groups = groups.view;
          job.m = groups.m;
          job.affine = affine;
          job.holdout = holdout;
          job.passes = Passes(passes);
          job.rank = rank;
          job.ranged = ranged;
          job.ranks = ranks.mutable_data();
          job.condition = condition.mutable_data();
          job.residual = residual.mutable_data();
          job.hindcast = hindcast.mutable_data();
          job.horizons = at.horizons;
          job.out = at.output;
          py::object operators = py::none(), whitener = py::none(), start = py::none();
          py::object readout = py::none();
          if (ahead.is_none()) {
            const auto made = [&](py::array_t<double> array, py::object &result) {
              result = array;
              return array.mutable_data();
            };
            job.operators = made(py::array_t<double>({count, m, m}), operators);
            job.whitener = made(py::array_t<double>({count, m, m}), whitener);
            job.start = made(py::array_t<double>({count, m}), start);
            job.readout = made(py::array_t<double>({count, m, m}), readout);
          }
          work(feature_fit, job);
          return py::make_tuple(ranks, condition, residual, hindcast, operators, whitener, start,
                                readout);
        });
  m.def("feature_endpoint", [](const py::array &array, const Index &order,
                               const CheckedGroups &segments, const Doubles &operators,
                               const Doubles &start, const Doubles &readout, bool affine,
                               const Sizes &horizons, const py::array &out) {
    const SnapshotArgument snapshots(array, order);
    const EqualGroupsArgument groups(segments, snapshots.view.size);
    const std::int64_t count = groups.view.count;
    if (operators.ndim() != 3 || start.ndim() != 2 || readout.ndim() != 3 ||
        operators.shape(0) != count || start.shape(0) != count || readout.shape(0) != count ||
        operators.shape(1) != start.shape(1) || operators.shape(2) != start.shape(1) ||
        readout.shape(1) != groups.m || readout.shape(2) != start.shape(1))
      throw std::invalid_argument("operator must have the shape (n_groups, r, r), start (n_groups, "
                                  "r) and readout (n_groups, m, r)");
    const SortedHorizons sorted(horizons);
    const OutputArgument to(out, std::int64_t(horizons.size()), snapshots.view.size);
    run(&Kernels::feature_endpoint,
        {snapshots.view, groups.view, groups.m, int(start.shape(1)), affine, operators.data(),
         start.data(), readout.data(), sorted.view(), to.view});
  });
  m.def("gather", [](const py::array &array, const Index &order, const CheckedGroups &segments) {
    const SnapshotArgument snapshots(array, order);
    const EqualGroupsArgument groups(segments, snapshots.view.size);
    py::array_t<double> out(
        {std::int64_t(snapshots.view.n), groups.view.count, std::int64_t(groups.m)});
    run(&Kernels::gather, {snapshots.view, groups.view, groups.m, out.mutable_data()},
        kCopiedTogether);
    return out;
  });
  m.def("scatter", [](const CheckedGroups &segments, const Doubles &values, const py::array &out) {
    if (out.ndim() != 2)
      throw std::invalid_argument("out must have the shape (n_horizons, size)");
    const EqualGroupsArgument groups(segments, out.shape(1));
    if (values.ndim() != 3 || values.shape(1) != groups.view.count || values.shape(2) != groups.m)
      throw std::invalid_argument("values must have the shape (n_horizons, n_groups, m) = (…, " +
                                  std::to_string(groups.view.count) + ", " +
                                  std::to_string(groups.m) + ")");
    const OutputArgument to(out, values.shape(0), out.shape(1));
    run(&Kernels::scatter, {values.data(), int(values.shape(0)), groups.view, groups.m, to.view},
        kCopiedTogether);
  });
}

// Memory of large results, which the next ones take over: the first touch of a page costs as much
// as what is written there. Idle blocks are kept up to kMostIdle bytes in all.
class ResultMemory {
public:
  // An array of complex numbers on a cache line's boundary.
  static py::array_t<std::complex<double>> complex(std::vector<py::ssize_t> shape) {
    std::size_t bytes = sizeof(std::complex<double>);
    for (const py::ssize_t size : shape)
      bytes *= std::size_t(size);
    if (bytes < kLarge)
      return py::array_t<std::complex<double>>(shape);
    auto block = std::make_unique<Block>(take(bytes));
    const py::capsule owner(block.get(), [](void *p) { give(static_cast<Block *>(p)); });
    return py::array_t<std::complex<double>>(
        shape, static_cast<std::complex<double> *>(block.release()->memory), owner);
  }

private:
  struct Block {
    void *memory;
    std::size_t bytes;
  };
  static constexpr std::size_t kLarge = 1 << 20, kPage = 1 << 21, kMostIdle = 64 << 20;

  struct Idle {
    std::mutex mutex;
    std::vector<Block> blocks;
    std::size_t bytes = 0;
  };
  static Idle &idle() { // never destroyed: the last results may be freed after everything else
    static Idle *const only = new Idle;
    return *only;
  }

  static Block take(std::size_t bytes) {
    bytes = (bytes + kPage - 1) / kPage * kPage;
    {
      Idle &all = idle();
      const std::lock_guard<std::mutex> lock(all.mutex);
      for (auto at = all.blocks.begin(); at != all.blocks.end(); ++at)
        if (at->bytes >= bytes && at->bytes / 2 <= bytes) {
          const Block found = *at;
          all.blocks.erase(at);
          all.bytes -= found.bytes;
          return found;
        }
    }
    void *memory = std::aligned_alloc(kPage, bytes);
    if (memory == nullptr)
      throw std::bad_alloc();
#if defined(__linux__)
    madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    return {memory, bytes};
  }

  static void give(Block *block) {
    const std::unique_ptr<Block> owned(block);
    Idle &all = idle();
    const std::lock_guard<std::mutex> lock(all.mutex);
    if (all.bytes + block->bytes > kMostIdle) {
      std::free(block->memory);
      return;
    }
    all.blocks.push_back(*block);
    all.bytes += block->bytes;
  }
};

void bind_modal(py::module_ &m) {
  // (values, modes, amplitudes, singular values, residuals, newest, ranks, status): see ModalJob.
  // rule: 0 to 3 as `RankRule`.
  m.def("modal_fit", [](const py::array &array, int delays, int rule, double value, double ridge,
                        bool exact, bool optimal, int width) {
    const bool is_double = is_float64(array, "systems");
    const py::ssize_t item = is_double ? sizeof(double) : sizeof(float);
    if (array.ndim() != 3 || array.strides(2) != item || array.shape(2) < 1 ||
        array.strides(1) != item * array.shape(2))
      throw std::invalid_argument("systems must have the shape (systems, n, m), each contiguous");
    const std::int64_t systems = array.shape(0), n = array.shape(1), features = array.shape(2);
    if (delays < 1 || n < delays + 1 || rule < 0 || rule > 3 || !(ridge >= 0.0))
      throw std::invalid_argument("a modal fit needs delays >= 1, more snapshots, a rule of 0 to 3 "
                                  "and a ridge >= 0");
    ModalJob job{};
    job.data = static_cast<const char *>(array.data());
    job.is_double = is_double;
    job.systems = systems;
    job.step = array.strides(0);
    job.n = int(n);
    job.m = int(features);
    job.delays = delays;
    job.rank = {RankRule(rule), value};
    job.ridge = ridge;
    job.exact = exact;
    job.optimal = optimal;
    job.width = width;
    const std::int64_t size = job.size();
    if (size > kMostModalRows || width < 1 || width > size || (!job.on_snapshots() && delays > 1))
      throw std::invalid_argument("a modal fit takes small matrices of at most " +
                                  std::to_string(kMostModalRows) + " rows and as many modes");
    using Numbers = py::array_t<std::complex<double>>;
    Numbers values({systems, std::int64_t(width)}), amplitudes({systems, std::int64_t(width)});
    Numbers modes = ResultMemory::complex({systems, features, std::int64_t(width)});
    py::array_t<double> residuals({systems, std::int64_t(width)}), singular({systems, size});
    py::array_t<std::int64_t> ranks(systems), status(systems);
    py::array newest(array.dtype(), std::vector<py::ssize_t>{systems, features});
    job.newest = static_cast<char *>(newest.mutable_data());
    job.values = reinterpret_cast<double *>(values.mutable_data());
    job.amplitudes = reinterpret_cast<double *>(amplitudes.mutable_data());
    job.modes = reinterpret_cast<double *>(modes.mutable_data());
    job.residuals = residuals.mutable_data();
    job.singular = singular.mutable_data();
    job.ranks = ranks.mutable_data();
    job.status = status.mutable_data();
    run(&Kernels::modal_fit, job, 2 * current_isa().kernels->lanes);
    return py::make_tuple(values, modes, amplitudes, singular, residuals, newest, ranks, status);
  });
}

void bind_exponents(py::module_ &m) {
  // (exponents, stop, iterations, error): see ExponentJob.
  using Numbers = py::array_t<std::complex<double>, py::array::c_style | py::array::forcecast>;
  m.def("exponent_fit", [](const Doubles &c, const Numbers &start, const Index &partner,
                           double ceiling, double headroom, int most) {
    if (c.ndim() != 3 || start.ndim() != 2 || partner.ndim() != 2 || c.shape(0) != start.shape(0) ||
        partner.shape(0) != start.shape(0) || partner.shape(1) != start.shape(1) ||
        c.shape(1) < 2 || start.shape(1) < 1 || most < 1)
      throw std::invalid_argument("c must have the shape (series, n, k), start and partner "
                                  "(series, r), with n >= 2, r >= 1 and most >= 1");
    const std::int64_t series = start.shape(0), r = start.shape(1);
    for (std::int64_t i = 0; i < series * r; ++i)
      if (partner.data()[i] < 0 || partner.data()[i] >= r)
        throw std::invalid_argument("a partner is not one of the exponents");
    Numbers alpha({series, r});
    py::array_t<double> error(series);
    py::array_t<std::int64_t> stop(series), iterations(series);
    run(&Kernels::exponent_fit,
        {series, int(c.shape(1)), int(c.shape(2)), int(r), most, ceiling, headroom, c.data(),
         reinterpret_cast<const double *>(start.data()), partner.data(),
         reinterpret_cast<double *>(alpha.mutable_data()), error.mutable_data(),
         stop.mutable_data(), iterations.mutable_data()});
    return py::make_tuple(alpha, stop, iterations, error);
  });
}

void bind_leading(py::module_ &m) {
  // (values, vectors, settled) of (groups, n, n) positive semidefinite matrices.
  m.def("leading", [](const Doubles &matrices, int count) {
    if (matrices.ndim() != 3 || matrices.shape(1) != matrices.shape(2) || count < 1 ||
        count > matrices.shape(1))
      throw std::invalid_argument("matrices must have the shape (groups, n, n), and 1 to n of "
                                  "their eigenvalues may be wanted");
    const std::int64_t groups = matrices.shape(0), n = matrices.shape(1);
    py::array_t<double> values({groups, std::int64_t(count)});
    py::array_t<double> vectors({groups, n, std::int64_t(count)});
    py::array_t<bool> settled(groups);
    run(&Kernels::leading, {groups, int(n), count, matrices.data(), values.mutable_data(),
                            vectors.mutable_data(), settled.mutable_data()});
    return py::make_tuple(values, vectors, settled);
  });
  // (eigenvalues, settled): see DelayStartJob.
  m.def("delay_start", [](const Doubles &c, int rank, int delays) {
    if (c.ndim() != 3 || c.shape(2) < 1 || delays < 1 || rank < 1 ||
        c.shape(1) < std::int64_t(delays) + rank)
      throw std::invalid_argument("c must have the shape (series, n, k), with delays >= 1, rank >= "
                                  "1 and n >= delays + rank");
    const std::int64_t series = c.shape(0);
    py::array_t<std::complex<double>> values({series, std::int64_t(rank)});
    py::array_t<bool> settled(series);
    run(&Kernels::delay_start,
        {series, int(c.shape(1)), int(c.shape(2)), rank, delays, c.data(),
         reinterpret_cast<double *>(values.mutable_data()), settled.mutable_data()});
    return py::make_tuple(values, settled);
  });
}

} // namespace
} // namespace koopcore::cpu

PYBIND11_MODULE(_cpu, m) {
  using namespace koopcore::cpu;
  m.doc() = "koopcore kernels for CPUs";
  bind_queries(m);
  bind_companion(m);
  bind_dense(m);
  bind_features(m);
  bind_modal(m);
  bind_exponents(m);
  bind_leading(m);
}
