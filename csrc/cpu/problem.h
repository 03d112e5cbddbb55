// What the kernels work on: a window of snapshots, groups of parameters, pieces of groups, and
// jobs.
//
// Mirrors cuda/problem.h and the arguments of cuda/stages.h.
#pragma once

#include "algorithms/modal.h"

#include <cstddef>
#include <cstdint>

namespace koopcore::cpu {

// Snapshot k of parameter j is at rows[k] + j·step, oldest first.
struct Window {
  const char *const *rows;
  int n;
  std::ptrdiff_t step; // bytes
  std::int64_t size;   // parameters in a snapshot
  bool is_double;
};

// The partition: group g owns the segments ptr[g] … ptr[g+1] - 1; a segment covers the parameters
// start + stride·(0 … length - 1).
struct Groups {
  const std::int64_t *ptr, *start, *length, *stride;
  std::int64_t count;
};

// `count` consecutive parameters of one group, from position `within` of `segment`.
struct Piece {
  std::int64_t segment, within, count;
};

// Horizons T >= 1 (or stops) in ascending order, and which row of the outputs each belongs to.
struct Horizons {
  const std::int64_t *ascending;
  const int *slot;
  int count;

  double steps() const { return count == 0 ? 0.0 : double(ascending[count - 1]); }
};

// Where predictions go: row h of parameter j at data + h·row + j·step, in bytes.
struct Output {
  char *data;
  std::ptrdiff_t row, step;
  bool is_double;
};

// Outputs of the companion fit, one entry (or row of n - 1 - affine) per group.
struct CompanionArrays {
  double *coefficients;
  std::int64_t *rank;
  double *residual, *condition, *hindcast;
};

// The jobs. `count` is the number of their groups, `nanoseconds` an estimate of their work on one
// core, which only decides about threads.

struct SolveJob {
  int n;
  bool affine;
  int holdout;
  CompanionArrays out;
};

struct RolloutJob {
  const double *coefficients; // (groups, columns)
  std::int64_t groups;
  int columns;
  bool affine;
  Horizons horizons;
  double *weights; // (n_horizons, groups, n)
  double *growth;  // (n_horizons, groups)

  std::int64_t count() const { return groups; }
  double nanoseconds() const {
    const double steps = horizons.steps() < 1024.0 ? horizons.steps() : 1024.0;
    return double(groups) * columns * (0.04 * steps + 4.0 * horizons.count);
  }
};

// Pieces that are combined in one call, at most.
constexpr int kPiecesTogether = 8;

struct CombineJob {
  Window window;
  Groups groups;
  const double *weights; // (n_horizons, weight_rows, n)
  std::int64_t weight_rows;
  int n_horizons;
  Output out; // (n_horizons, size)

  double nanoseconds(std::int64_t parameters) const {
    return n_horizons == 0 ? 0.0 : double(parameters) * window.n * (0.15 + 0.05 * n_horizons);
  }
};

struct ProjectJob {
  std::int64_t groups;
  int size; // N
  int rank; // 0: full
  double ridge;
  bool raw;
  const double *a, *h, *g;      // (groups, N, N) twice, (groups, N)
  double *operators, *whitener; // (groups, N, N)
  double *start;                // (groups, N)
  std::int64_t *ranks;          // (groups,)
  double *condition;            // (groups,)

  std::int64_t count() const { return groups; }
  double nanoseconds() const { return double(groups) * size * size * (2.0 + 0.4 * size); }
};

struct DenseRolloutJob {
  const double *operators, *start; // (groups, r, r), (groups, r)
  std::int64_t groups;
  int size;
  bool affine;
  Horizons horizons;
  double *states; // (n_horizons, groups, r)
  double *growth; // (n_horizons, groups)

  std::int64_t count() const { return groups; }
  double nanoseconds() const {
    const double steps = horizons.steps() < 200.0 ? horizons.steps() : 200.0;
    return double(groups) * size * size * 0.1 * steps;
  }
};

// In the following all groups have m parameters.

struct MomentsJob {
  Window window;
  Groups groups;
  int m;
  bool affine;
  Horizons stops;
  double *out; // (n_stops, groups, 2, m, m)

  std::int64_t count() const { return groups.count; }
  double nanoseconds() const { return double(count()) * window.n * m * (1.0 + 0.1 * m); }
};

struct GatherJob {
  Window window;
  Groups groups;
  int m;
  double *out; // (n_rows, groups, m)

  std::int64_t count() const { return groups.count; }
  double nanoseconds() const { return double(count()) * m * window.n; }
};

struct ScatterJob {
  const double *values; // (n_rows, groups, m)
  int n_rows;
  Groups groups;
  int m;
  Output out; // (n_rows, size)

  std::int64_t count() const { return groups.count; }
  double nanoseconds() const { return double(count()) * m * n_rows; }
};

// How a fit of the feature side looks at its snapshots: moments alone; moments for a basis, and a
// second pass in it; moments of some rows for the basis (`sampled`, of long windows); or what one
// large group at a time needs of the first two (`large`).
// u·cond², the share that rounding of sums may have of their smallest direction, before a second
// pass (UNSURE in backends/second_pass.py).
constexpr double kUnsureFloat = 0x1p-6, kUnsureDouble = 0x1p-40;

enum class Passes { moments, second, sampled, large };

// What a kernel of one group can leave to threads: runs body(task, scratch) for all tasks, with
// `own`, where nobody else does.
struct Tasks {
  using Body = void (*)(void *context, std::int64_t task, double *scratch);
  void (*others)(std::int64_t tasks, double nanoseconds, std::size_t scratch_size, void *context,
                 Body body); // run_tasks of threads.h, or null
  double *own;

  template <class Do>
  void run(std::int64_t tasks, double nanoseconds, std::size_t scratch_size, Do &&each) const {
    if (others == nullptr) {
      for (std::int64_t task = 0; task < tasks; ++task)
        each(task, own);
      return;
    }
    others(tasks, nanoseconds, scratch_size, &each,
           [](void *context, std::int64_t task, double *scratch) {
             (*static_cast<Do *>(context))(task, scratch);
           });
  }
};

struct FeatureFitJob {
  Window window;
  Groups groups;
  int m;
  bool affine;
  int holdout;
  Passes passes;
  int rank;    // of a second pass: singular values to keep; 0 keeps all
  bool ranged; // groups whose squares are out of range have no finite residual
  double *operators, *whitener, *readout; // (groups, m, m), or null: not wanted
  double *start;                          // (groups, m), likewise
  std::int64_t *ranks;                    // (groups,)
  double *condition, *residual, *hindcast;
  Horizons horizons; // predicted at once, into `out`
  Output out;        // (n_horizons, size)

  std::int64_t count() const { return groups.count; }
  double nanoseconds() const {
    const double once = window.n * (1.0 + 0.1 * m) + m * (4.0 + 0.3 * m);
    return double(count()) * m * (passes == Passes::second ? 4.0 : 1.0) * once;
  }
};

struct FeatureEndpointJob {
  Window window;
  Groups groups;
  int m, rank;
  bool affine;
  const double *operators, *start, *readout; // (groups, r, r), (groups, r), (groups, m, r)
  Horizons horizons;
  Output out; // (n_horizons, size)

  std::int64_t count() const { return groups.count; }
  double nanoseconds() const {
    return double(count()) * rank * rank * (4.0 + 2.0 * horizons.count);
  }
};

constexpr int kMostModalRows = 32; // of the small matrices of a modal fit

// Dynamic mode decomposition of systems of n snapshots of m numbers, one `step` after the other.
struct ModalJob {
  const char *data; // systems (n × m), row-major
  bool is_double;
  std::int64_t systems;
  std::ptrdiff_t step; // bytes from one system to the next
  int n, m, delays;
  RankModel rank;
  double ridge;
  bool exact, optimal;          // modes F' g, not F g; amplitudes over all times, not at the first
  int width;                    // modes of a system at most
  double *values, *amplitudes;  // (systems, width) complex
  double *modes;                // (systems, m, width) complex
  double *residuals;            // (systems, width)
  double *singular;             // (systems, size())
  char *newest;                 // (systems, m) of the snapshots' type: the last ones
  std::int64_t *ranks, *status; // (systems,); status 0: done, 1: the rank is above `width`, 2: left

  bool on_snapshots() const { return std::int64_t(m) * delays >= n - delays; }
  int size() const { return on_snapshots() ? n - delays : m; }
  std::int64_t count() const { return systems; }
  double nanoseconds() const {
    const double rows = size();
    return double(systems) * (n * m * (1.0 + 0.1 * rows) + rows * rows * (10.0 + rows));
  }
};

// Exponentials at n equal steps of [0, 1] fitted to real series of k coordinates.
struct ExponentJob {
  std::int64_t series;
  int n, k, r, most;
  double ceiling, headroom;        // bounds on Re α, and on how far it may exceed that of the start
  const double *c, *start;         // (series, n, k); (series, r) complex, NaN where there are fewer
  const std::int64_t *partner;     // (series, r) which is the conjugate of which
  double *alpha, *error;           // (series, r) complex; (series,)
  std::int64_t *stop, *iterations; // (series,)

  std::int64_t count() const { return series; }
  double nanoseconds() const { return double(series) * n * r * (r + k) * 5.0; }
};

// The largest eigenvalues of symmetric matrices, where few are wanted.
struct LeadingJob {
  std::int64_t groups;
  int n, count_wanted;
  const double *matrices;   // (groups, n, n)
  double *values, *vectors; // (groups, wanted); (groups, n, wanted)
  bool *settled;            // (groups,)

  std::int64_t count() const { return groups; }
  double nanoseconds() const { return double(groups) * n * n * (count_wanted + 4) * 0.5; }
};

// Eigenvalues of one step of delayed coordinates c, rank r: what a fit of exponents starts from.
struct DelayStartJob {
  std::int64_t series;
  int n, k, r, delays;
  const double *c; // (series, n, k)
  double *values;  // (series, r) complex, NaN past the rank
  bool *settled;   // (series,)

  int columns() const { return n - delays + 1; }
  std::int64_t count() const { return series; }
  double nanoseconds() const { return double(series) * columns() * columns() * (r + 8) * 0.5; }
};

} // namespace koopcore::cpu
