// The whole fit of one group of many parameters, its matrices in panels of registers.
//
// Lanes of a register suit many groups of some dozen parameters; the matrices of W larger ones
// leave the cache. What is fitted here has surely full rank; groups that may not have it get rank
// 0.
#include "algorithms/moments.h"
#include "algorithms/natural.h"
#include "cpu/kernels.h"
#include "cpu/panels.h"

namespace koopcore::cpu::KOOPCORE_ISA {

namespace {

constexpr std::int64_t kFetchedAhead = 8; // rows
constexpr std::int64_t kLeastRows = 256;  // of a span, whose sums are those of one task
constexpr double kMostSpanSums = 0x1p23;  // doubles of all spans' sums
constexpr int kLargeProducts = 256;       // rows of squarings that are divided into tasks
constexpr int kPanelsOfTask = 9;
constexpr int kMostInCache = 400;         // rows of a matrix in the second-level cache
constexpr double kNanosecondsEach = 0.05; // a multiply-add
// Hands out memory one piece after the other; without memory it counts.
class Pieces {
public:
  explicit Pieces(double *memory) : start_(reinterpret_cast<Vec *>(memory)) {}
  Vec *take(std::ptrdiff_t count) {
    Vec *const piece = start_ == nullptr ? nullptr : start_ + used_;
    used_ += count;
    return piece;
  }
  std::size_t doubles() const { return std::size_t(used_) * kLanes; }

private:
  Vec *start_;
  std::ptrdiff_t used_ = 0;
};

int panels_of(int m) { return (m + kLanes - 1) / kLanes; }

// How a group's fit is divided: the same for every number of threads.
struct Shape {
  explicit Shape(const FeatureFitJob &job)
      : m(job.m), panels(panels_of(m)), rows(panels * kLanes),
        columns(job.window.n - 1 - int(job.affine)), shorter(columns - job.holdout) {
    const double most = kMostSpanSums / (2.0 * m * m);
    const std::int64_t least = m > 2 * kLeastRows ? m / 2 : kLeastRows;
    std::int64_t wanted = columns / least;
    wanted = double(wanted) > most ? std::int64_t(most) : wanted;
    const std::int64_t of_shorter =
        std::int64_t(double(wanted) * double(shorter) / double(columns));
    before = int(of_shorter < 1 ? 1 : of_shorter);
    spans = before + int(wanted - before < 1 ? 1 : wanted - before);
  }
  // Where a span begins; that of `spans` is the number of columns.
  std::int64_t begin(int span) const {
    return span < before ? shorter * span / before
                         : shorter + (columns - shorter) * (span - before) / (spans - before);
  }
  double products(double of) const { return of * m * m; } // work of so many rows

  int m, panels, rows;
  std::int64_t columns, shorter;
  int before, spans; // `before` of the spans make up the hindcast's window
};

// Squarings of an operator that repay in a rollout to T = gap + 1: each has the multiply-adds of m
// products with a vector and takes the time of 0.4 m of them, which wait for the second-level
// cache, or of far fewer where the operator is larger.
int squarings(std::int64_t gap, int m) {
  const double each = 1.0 + (m > kMostInCache ? 0.05 : 0.4) * m;
  int best = 0;
  double least = double(gap);
  for (int level = 1; level < 63 && gap >> level > 0; ++level) {
    const double cost = double(gap >> level) + level * each;
    if (cost < least) {
      least = cost;
      best = level;
    }
  }
  return best;
}

std::int64_t farthest(const Horizons &horizons) {
  return horizons.count == 0 ? 1 : horizons.ascending[horizons.count - 1];
}

// A window's sums, what is made of them, and its rollout.
struct WindowWork {
  Panels c, e;                            // Σ f fᵀ, Σ f (f' - f)ᵀ; of a second pass Σ z zᵀ, Σ z …
  Panels u, lower, inverse, free;         // the factor, its transpose, its inverse
  Panels whitener, readout, powers, sums; // V, H V, (K^(2^level))ᵀ one after the other
  Vec *scale, *newest, *before, *z, *state, *next, *totals;
  double condition, square;
  bool sure;
};

struct GroupWork {
  Panels basis, across, back; // of a second pass: V, Vᵀ, and U with B = Uᵀ, f = B z
  Vec *last, *oldest, *one_before, *held, *v, *spans, *place, *offset, *together;
  WindowWork window[2];

  GroupWork(Pieces &pieces, const FeatureFitJob &job, const Shape &shape) {
    const std::ptrdiff_t square = std::ptrdiff_t(shape.panels) * shape.rows;
    const auto matrix = [&] { return Panels{pieces.take(square), shape.rows}; };
    const auto vector = [&] { return pieces.take(shape.panels); };
    basis = matrix();
    across = matrix();
    back = matrix();
    Vec **const vectors[] = {&last, &oldest, &one_before, &held, &v};
    for (Vec **to : vectors)
      *to = vector();
    spans = pieces.take(2 * square * shape.spans);
    place = pieces.take(shape.panels);
    offset = pieces.take(shape.panels);
    together = pieces.take(shape.panels);
    for (int stop = 0; stop < 2; ++stop) {
      WindowWork &of = window[stop];
      Panels *const matrices[] = {&of.c,       &of.e,    &of.u,        &of.lower,
                                  &of.inverse, &of.free, &of.whitener, &of.readout};
      for (Panels *to : matrices)
        *to = matrix();
      const std::int64_t horizon = stop == 0 ? job.holdout : farthest(job.horizons);
      const int levels = squarings(horizon - 1, shape.m);
      of.powers = Panels{pieces.take((levels + 1) * square), shape.rows};
      of.totals = pieces.take((levels + 1) * shape.panels);
      Vec **const of_window[] = {&of.scale, &of.newest, &of.before, &of.z, &of.state, &of.next};
      for (Vec **to : of_window)
        *to = vector();
    }
  }
};

// Rows of the span that are in panels at once, and their changes, and what else a span needs.
struct SpanWork {
  Panels y, change, z, across; // across: y in panels of rows
  Vec *raw, *current;

  SpanWork(Pieces &pieces, const Shape &shape) {
    // A row of panels is one row longer: the next power of two would put all in a few cache sets.
    const std::ptrdiff_t rows = kDepth + 1;
    Panels *const blocks[] = {&y, &change, &z};
    for (Panels *to : blocks)
      *to = Panels{pieces.take(rows * shape.panels), rows};
    across = Panels{pieces.take(std::ptrdiff_t(kDepth / kLanes) * shape.rows), shape.rows};
    raw = pieces.take(shape.panels);
    current = pieces.take(shape.panels);
  }
};

template <class T> class LargeFit {
public:
  LargeFit(const FeatureFitJob &job, std::int64_t group, const Tasks &tasks, double *memory)
      : job_(job), shape_(job), group_(group), tasks_(tasks), pieces_(memory),
        work_(pieces_, job, shape_), panels_(shape_.panels) {}

  void fit() {
    job_.ranks[group_] = 0;
    if (shape_.shorter < shape_.m)
      return;
    find_columns();
    take(job_.window.n - 1, work_.last);
    take(job_.window.n - 2, work_.one_before);
    take(0, work_.oldest);
    take(job_.window.n - 1 - job_.holdout, work_.held);
    if (!job_.affine)
      set_reflection();
    WindowWork &shorter = work_.window[0], &whole = work_.window[1];
    const double all = shape_.products(double(shape_.columns));
    const double each = shape_.products(3.0 * shape_.m);
    sum_up(1.5 * all, [&](int span, double *scratch) { sum_span(span, scratch); });
    in_windows(each, [&](WindowWork &of) { factor(of); });
    if (!(shorter.sure && whole.sure))
      return;
    const double unsure = (job_.window.is_double ? kUnsureDouble : kUnsureFloat);
    const double reach = reach_of();
    const double most = unsure * 0x1p53 / (reach * reach); // of cond², by a bound or by an estimate
    const bool again = !(whole.square <= most) && !(condition_of(whole) <= most);
    if (again) {
      set_basis(whole);
      sum_up(2.0 * all, [&](int span, double *scratch) { sum_in_basis(span, scratch); });
    }
    // Squarings of one window may be many more than those of the other: large ones share threads.
    const bool apart = shape_.m < kLargeProducts;
    in_windows(2.0 * each, [&](WindowWork &of) {
      of.sure = !again || factor_again(of);
      if (!of.sure)
        return;
      find_columns_of(of);
      make_operator(of, again);
      if (apart) {
        raise(of, false);
        roll(of);
      }
    });
    if (!apart && shorter.sure && whole.sure) {
      raise(shorter, true);
      raise(whole, true);
      in_windows(0.5 * shape_.products(rollout_steps()), [&](WindowWork &of) { roll(of); });
    }
    job_.ranks[group_] = shorter.sure && whole.sure ? shape_.m : 0;
    job_.hindcast[group_] = hindcast_;
  }

private:
  // -- Snapshots ----------------------------------------------------------------------------------

  // Which parameters of a snapshot the group's are, and where they stand in it, in bytes.
  std::int64_t *place() const { return reinterpret_cast<std::int64_t *>(work_.place); }
  std::ptrdiff_t *offset() const { return reinterpret_cast<std::ptrdiff_t *>(work_.offset); }

  void find_columns() {
    const Groups &groups = job_.groups;
    std::int64_t i = 0;
    for (std::int64_t s = groups.ptr[group_]; s < groups.ptr[group_ + 1]; ++s)
      for (std::int64_t k = 0; k < groups.length[s]; ++k)
        place()[i++] = groups.start[s] + k * groups.stride[s];
    for (i = 0; i < shape_.m; ++i)
      offset()[i] = job_.window.step * place()[i];
    for (int j = 0; j < panels_; ++j) {
      double together = 1.0;
      for (int lane = 1; lane < lanes_of(j); ++lane)
        if (offset()[j * kLanes + lane] != offset()[j * kLanes] + lane * std::ptrdiff_t(sizeof(T)))
          together = 0.0;
      work_.together[j] = Vec{} + together;
    }
  }

  int lanes_of(int j) const {
    const int left = shape_.m - j * kLanes;
    return left < kLanes ? left : kLanes;
  }

  // out <- snapshot k, while a later one is fetched.
  void take(std::int64_t k, Vec *out) const {
    const std::int64_t newest = job_.window.n - 1;
    const char *row = job_.window.rows[k];
    const char *ahead = job_.window.rows[k + kFetchedAhead < newest ? k + kFetchedAhead : newest];
    for (int j = 0; j < panels_; ++j) {
      const std::ptrdiff_t *from = offset() + j * kLanes;
      const int count = lanes_of(j);
      __builtin_prefetch(ahead + from[0]);
      if (work_.together[j][0] > 0.0) {
        out[j] = count == kLanes ? load<T>(row + from[0]) : load_first<T>(row + from[0], count);
        continue;
      }
      Narrow<T> x{};
      for (int lane = 0; lane < count; ++lane) {
        T one;
        __builtin_memcpy(&one, row + from[lane], sizeof one);
        x[lane] = one;
      }
      out[j] = widen(x);
    }
  }

  // Of the linear model: the reflection of `Reflection`, with sums in registers.
  void set_reflection() {
    Reflection<Scalar> of{reinterpret_cast<double *>(work_.v), 0.0, 0.0};
    of.set(reinterpret_cast<const double *>(work_.last), shape_.m);
    for (int i = shape_.m; i < shape_.rows; ++i)
      of.v[i] = 0.0;
    twice_ = of.twice;
    size_ = of.size;
  }

  void reflect(Vec *x) const {
    Vec along{};
    for (int j = 0; j < panels_; ++j)
      along += (x[j] - work_.last[j]) * work_.v[j];
    const double times = twice_ * sum_of(along);
    for (int j = 0; j < panels_; ++j) {
      const Vec motion = x[j] - size_ * work_.v[j]; // exact product: one rounding
      x[j] = motion - times * work_.v[j];
    }
  }

  // y <- the rows y_t, `begin` … `begin` + count, and change <- y_{t+1} - y_t of all but the last.
  void take_rows(std::int64_t begin, int count, const SpanWork &span) const {
    if (job_.affine)
      take(begin, span.raw);
    for (int k = 0; k <= count; ++k) {
      take(begin + k + int(job_.affine), span.current);
      if (job_.affine) {
        for (int j = 0; j < panels_; ++j) {
          span.y.panel(j)[k] = span.current[j] - span.raw[j];
          span.raw[j] = span.current[j];
        }
        continue;
      }
      reflect(span.current);
      for (int j = 0; j < panels_; ++j)
        span.y.panel(j)[k] = span.current[j];
    }
    for (int j = 0; j < panels_; ++j)
      for (int k = 0; k < count; ++k)
        span.change.panel(j)[k] = span.y.panel(j)[k + 1] - span.y.panel(j)[k];
  }

  // The row y_t of the summed rows.
  void row_of(std::int64_t t, Vec *out) const {
    if (!job_.affine) {
      take(t, out);
      reflect(out);
      return;
    }
    take(t + 1, out);
    const char *row = job_.window.rows[t];
    for (int i = 0; i < shape_.m; ++i) {
      T one;
      __builtin_memcpy(&one, row + offset()[i], sizeof one);
      out[i / kLanes][i % kLanes] -= double(one);
    }
  }

  // -- Sums ---------------------------------------------------------------------------------------

  Range all() const { return {0, panels_}; }
  std::ptrdiff_t square() const { return std::ptrdiff_t(panels_) * shape_.rows; }

  // Where the sums of a span stand, two matrices one after the other.
  Panels sums_of(int span, int which) const {
    return {work_.spans + (2 * span + which) * square(), shape_.rows};
  }

  static const Panels &sums_in(const WindowWork &of, int which) { return which == 0 ? of.c : of.e; }

  // take(rows, count, what becomes of the sums so far) over blocks of the span's rows.
  template <class Take> void for_each_block(int span, double *scratch, Take &&take) const {
    Pieces pieces(scratch);
    const SpanWork memory(pieces, shape_);
    for (std::int64_t at = shape_.begin(span); at < shape_.begin(span + 1); at += kDepth) {
      const std::int64_t left = shape_.begin(span + 1) - at;
      const int count = int(left < kDepth ? left : kDepth);
      take_rows(at, count, memory);
      take(memory, count, at == shape_.begin(span) ? Sum::set : Sum::add);
    }
  }

  // Σ a aᵀ, of which the upper triangle is enough, and Σ a changeᵀ.
  void add_rows(Sum sum, const Panels &a, const Panels &change, int count, int span) const {
    product(sum, a, a, sums_of(span, 0), all(), all(),
            [&](int i, int j, int width) { return Range{0, j + width > i ? count : 0}; });
    product(sum, a, change, sums_of(span, 1), all(), all(),
            [&](int, int, int) { return Range{0, count}; });
  }

  void sum_span(int span, double *scratch) const {
    for_each_block(span, scratch, [&](const SpanWork &rows, int count, Sum sum) {
      add_rows(sum, rows.y, rows.change, count, span);
    });
  }

  // The same with rows in the basis V, upper triangular.
  void sum_in_basis(int span, double *scratch) const {
    for_each_block(span, scratch, [&](const SpanWork &rows, int count, Sum sum) {
      const int blocks = (count + kLanes - 1) / kLanes;
      for (int k = count; k < blocks * kLanes; ++k)
        for (int j = 0; j < panels_; ++j)
          rows.y.panel(j)[k] = Vec{};
      for (int k = 0; k < blocks; ++k)
        for (int j = 0; j < panels_; ++j)
          transpose_block(rows.y, k, j, rows.across);
      product(Sum::set, rows.across, work_.basis, rows.z, {0, blocks}, all(),
              [&](int, int j, int width) { return Range{0, (j + width) * kLanes}; });
      add_rows(sum, rows.z, rows.change, count, span);
    });
  }

  // Sums of all spans, then of both windows; `work` multiply-adds in all.
  template <class Sum> void sum_up(double work, Sum &&sum) {
    tasks_.run(shape_.spans, work * kNanosecondsEach, span_size(),
               [&](std::int64_t span, double *scratch) { sum(int(span), scratch); });
    for (int which = 0; which < 2; ++which)
      for (int j = 0; j < panels_; ++j) { // of the symmetric one the upper triangle
        const std::ptrdiff_t first = j * std::ptrdiff_t(shape_.rows);
        const std::ptrdiff_t end = first + (which == 0 ? (j + 1) * kLanes : shape_.rows);
        for (std::ptrdiff_t i = first; i < end; ++i) {
          Vec sum = sums_of(0, which).data[i];
          for (int span = 1; span < shape_.before; ++span)
            sum += sums_of(span, which).data[i];
          sums_in(work_.window[0], which).data[i] = sum;
          for (int span = shape_.before; span < shape_.spans; ++span)
            sum += sums_of(span, which).data[i];
          sums_in(work_.window[1], which).data[i] = sum;
        }
      }
    for (WindowWork &of : work_.window)
      mirror(of.c, panels_);
  }

  void add(const Panels &to, const Panels &from) const {
    for (std::ptrdiff_t i = 0; i < square(); ++i)
      to.data[i] += from.data[i];
  }

  std::size_t span_size() const {
    Pieces pieces(nullptr);
    SpanWork(pieces, shape_);
    return pieces.doubles();
  }

  // Both windows, of so many multiply-adds each.
  template <class Do> void in_windows(double each, Do &&done) {
    tasks_.run(2, 2.0 * each * kNanosecondsEach, 0,
               [&](std::int64_t stop, double *) { done(work_.window[stop]); });
  }

  // -- Factors ------------------------------------------------------------------------------------

  // U and U⁻¹ of `a`, with the identity past the matrix.
  bool invert_factor(WindowWork &of) const {
    for (int i = shape_.m; i < shape_.rows; ++i)
      of.u.at(i, i) = 1.0;
    if (!cholesky(of.u, panels_, of.lower))
      return false;
    invert(of.u, of.lower, panels_, of.inverse);
    return true;
  }

  // V = S U⁻¹ of C = S⁻¹ UᵀU S⁻¹, S powers of two; sure unless diagonal pivoting may not find full
  // rank or a singular value may be at the cut-off.
  void factor(WindowWork &of) const {
    const int m = shape_.m;
    of.sure = false;
    double largest = 0.0, least = HUGE_VAL, trace = 0.0;
    auto *scale = reinterpret_cast<double *>(of.scale);
    for (int i = 0; i < shape_.rows; ++i) {
      const double own = i < m ? of.c.at(i, i) : 1.0;
      scale[i] = Scalar::power_of_two_scale(own);
      if (i == m)
        break;
      largest = own > largest ? own : largest;
      least = own < least ? own : least;
      trace += own;
    }
    for (int i = m; i < shape_.rows; ++i)
      scale[i] = 1.0;
    if (!(largest > kLeastSquare && largest < kGreatestSquare && least > 0.0))
      return;
    double norm = 0.0, diagonal = 0.0;
    for (int j = 0; j < panels_; ++j) {
      Vec sum{};
      for (int i = 0; i < shape_.rows; ++i) {
        const Vec entry = of.c.panel(j)[i] * (scale[i] * of.scale[j]);
        of.u.panel(j)[i] = entry;
        sum += entry * entry;
      }
      norm += sum_of(sum);
    }
    for (int i = 0; i < m; ++i)
      diagonal = of.u.at(i, i) > diagonal ? of.u.at(i, i) : diagonal;
    if (!invert_factor(of))
      return;
    double first = HUGE_VAL, last = 0.0; // pivots
    for (int i = 0; i < m; ++i) {
      const double pivot = of.u.at(i, i);
      first = pivot < first ? pivot : first;
      last = pivot > last ? pivot : last;
    }
    of.condition = last / first;
    double greatest = 0.0, inverse_trace = 0.0;
    for (int i = 0; i < panels_; ++i) { // the diagonal of A⁻¹ = U⁻¹ U⁻ᵀ
      Vec squares[kLanes] = {};
      for (int j = i; j < panels_; ++j)
        KOOPCORE_UNROLL
      for (int r = 0; r < kLanes; ++r) {
        const Vec entry = of.inverse.panel(j)[i * kLanes + r];
        squares[r] += entry * entry;
      }
      const Vec own = sum_lanes(squares);
      for (int lane = 0; lane < lanes_of(i); ++lane) {
        greatest = own[lane] > greatest ? own[lane] : greatest;
        inverse_trace += own[lane] * (of.scale[i][lane] * of.scale[i][lane]);
      }
    }
    if (&of == &work_.window[1])
      of.square = Scalar::sqrt(norm * norm_of_inverse(of));
    const double tolerance = rank_tolerance(m);
    const double pivots = kSureOfRank * tolerance * diagonal * greatest;
    const double values = tolerance * tolerance * trace * inverse_trace;
    of.sure = pivots < 1.0 && values < 1.0;
    scale_rows(of.inverse, scale, of.whitener);
  }

  // ‖A⁻¹‖², of A = UᵀU.
  double norm_of_inverse(const WindowWork &of) const {
    transpose_all(of.inverse, panels_, of.lower);
    product(Sum::set, of.lower, of.lower, of.free, all(), all(), [&](int i, int j, int width) {
      return Range{(i > j ? i : j) * kLanes, j + width > i ? shape_.rows : 0};
    });
    double norm = shape_.m - shape_.rows; // without what is past the matrix
    for (int j = 0; j < panels_; ++j) {
      Vec sum{};
      for (int i = 0; i < j * kLanes; ++i)
        sum += 2.0 * of.free.panel(j)[i] * of.free.panel(j)[i];
      for (int i = j * kLanes; i < (j + 1) * kLanes; ++i)
        sum += of.free.panel(j)[i] * of.free.panel(j)[i];
      norm += sum_of(sum);
    }
    return norm;
  }

  // At least cond² of the scaled columns, by power iterations with A and A⁻¹, the upper triangle of
  // which `norm_of_inverse` left: after ten from the same random start a norm is more than 0.7 of
  // the largest eigenvalue, of a thousand parameters too.
  double condition_of(WindowWork &of) const {
    double condition = 2.0;
    mirror(of.free, panels_);
    for (int scaled = 0; scaled < 2; ++scaled) {
      const Panels &a = scaled ? of.c : of.free;
      std::uint32_t random = 1;
      for (int i = 0; i < shape_.rows; ++i) {
        random = random * 1664525u + 1013904223u;
        of.state[i / kLanes][i % kLanes] = i < shape_.m ? double(random >> 8) - 0x1p23 : 0.0;
      }
      double norm = 0.0;
      for (int iteration = 0; iteration < 11; ++iteration) {
        norm = Scalar::sqrt(dot_of(of.state, of.state, panels_));
        for (int j = 0; j < panels_; ++j)
          of.state[j] = of.state[j] * (scaled ? of.scale[j] / norm : Vec{} + 1.0 / norm);
        apply_transposed(a, panels_, of.state, of.next);
        for (int j = 0; j < panels_; ++j)
          of.state[j] = scaled ? of.next[j] * of.scale[j] : of.next[j];
      }
      condition *= Scalar::sqrt(dot_of(of.state, of.state, panels_));
    }
    return condition;
  }

  void scale_rows(const Panels &from, const double *scale, const Panels &to) const {
    for (int j = 0; j < panels_; ++j)
      for (int i = 0; i < shape_.rows; ++i)
        to.panel(j)[i] = scale[i] * from.panel(j)[i];
  }

  // The basis of a second pass, and the way back from it, by the factor of the whole window.
  void set_basis(const WindowWork &whole) {
    clear(work_.back, panels_);
    for (int j = 0; j < panels_; ++j) {
      for (int i = 0; i < shape_.rows; ++i)
        work_.basis.panel(j)[i] = whole.whitener.panel(j)[i];
      for (int i = 0; i < (j + 1) * kLanes; ++i)
        work_.back.panel(j)[i] = whole.u.panel(j)[i] / whole.scale[j];
    }
    transpose_all(work_.basis, panels_, work_.across);
  }

  // With Σ z zᵀ = RᵀR: V <- V R⁻¹, e <- (B Σ z zᵀ + Σ (f' - f) zᵀ)ᵀ. False where it has no factor.
  bool factor_again(WindowWork &of) const {
    for (std::ptrdiff_t i = 0; i < square(); ++i)
      of.u.data[i] = of.c.data[i];
    if (!invert_factor(of))
      return false;
    product(Sum::add, of.c, work_.back, of.e, all(), all(),
            [&](int, int j, int width) { return Range{0, (j + width) * kLanes}; });
    product(Sum::set, work_.across, of.inverse, of.whitener, all(), all(),
            [&](int i, int j, int width) { return Range{i * kLanes, (j + width) * kLanes}; });
    return true;
  }

  // H V and Kᵀ = (H V)ᵀ V, and powers of it.
  void make_operator(WindowWork &of, bool again) const {
    if (!again)
      add(of.e, of.c);
    const Panels &root = again ? of.inverse : of.whitener;
    const auto upper = [&](int, int j, int width) { return Range{0, (j + width) * kLanes}; };
    product(Sum::set, of.e, root, of.readout, all(), all(), upper);
    const Panels first{of.powers.data, shape_.rows};
    product(Sum::set, of.readout, of.whitener, first, all(), all(), upper);
    apply_transposed(of.whitener, panels_, of.newest, of.z);
  }

  // -- Rollout ------------------------------------------------------------------------------------

  Panels power(const WindowWork &of, int level) const {
    return {of.powers.data + level * square(), shape_.rows};
  }

  // (K^(2^level))ᵀ, and of the affine model the sum of 2^level terms.
  void raise(WindowWork &of, bool by_tasks) const {
    for (int j = 0; j < panels_; ++j)
      of.totals[j] = of.z[j];
    for (int level = 0; level < levels_of(of); ++level) {
      const Panels from = power(of, level), to = power(of, level + 1);
      transpose_all(from, panels_, of.free);
      const auto columns = [&](Range some) {
        product(Sum::set, of.free, from, to, all(), some,
                [&](int, int, int) { return Range{0, shape_.rows}; });
      };
      if (by_tasks)
        tasks_.run((panels_ + kPanelsOfTask - 1) / kPanelsOfTask,
                   shape_.products(shape_.m) * kNanosecondsEach, 0,
                   [&](std::int64_t task, double *) {
                     const int begin = int(task) * kPanelsOfTask, end = begin + kPanelsOfTask;
                     columns({begin, end < panels_ ? end : panels_});
                   });
      else
        columns(all());
      Vec *const total = of.totals + level * panels_, *const next = total + panels_;
      apply_transposed(from, panels_, total, next);
      for (int j = 0; j < panels_; ++j)
        next[j] += total[j];
    }
  }

  int levels_of(const WindowWork &of) const {
    const std::int64_t horizon = &of == &work_.window[0] ? job_.holdout : farthest(job_.horizons);
    return squarings(horizon - 1, shape_.m);
  }

  // The state `gap` snapshots on.
  void advance(WindowWork &of, std::int64_t gap, int levels) const {
    for (int level = levels; level >= 0; --level)
      for (; gap >> level > 0; gap -= std::int64_t(1) << level) {
        apply_transposed(power(of, level), panels_, of.state, of.next);
        for (int j = 0; j < panels_; ++j)
          of.state[j] = job_.affine ? of.next[j] + of.totals[level * panels_ + j] : of.next[j];
      }
  }

  // Products with a vector in the rollout of the two windows, about.
  double rollout_steps() const {
    double steps = 0.0;
    for (const WindowWork &of : work_.window) {
      const std::int64_t horizon = &of == &work_.window[0] ? job_.holdout : farthest(job_.horizons);
      steps += double(horizon >> levels_of(of)) + levels_of(of);
    }
    return steps;
  }

  void roll(WindowWork &of) {
    if (&of == &work_.window[0])
      hindcast_ = hindcast(of);
    else
      put(of);
  }

  void start(WindowWork &of) const {
    for (int j = 0; j < panels_; ++j)
      of.state[j] = of.z[j];
  }

  // The newest columns of F' and F.
  void find_columns_of(WindowWork &of) const {
    const std::int64_t end = &of == &work_.window[0] ? shape_.shorter : shape_.columns;
    row_of(end, of.newest);
    row_of(end - 1, of.before);
  }

  // The relative error of predicting the newest snapshot from the shorter window.
  double hindcast(WindowWork &of) const {
    start(of);
    advance(of, job_.holdout - 1, levels_of(of));
    apply_panels(of.readout, panels_, of.state, of.next);
    for (int j = 0; j < panels_; ++j)
      of.state[j] = work_.last[j] - work_.held[j];
    const double moved = Scalar::sqrt(dot_of(of.state, of.state, panels_));
    if (!job_.affine)
      row_of(shape_.columns, of.state);
    return moved > 0.0 ? distance_of(of.next, of.state, panels_) / moved : 0.0;
  }

  double reach_of() const {
    const double steps = 2.0 * double(job_.window.n - 1);
    const double moved = distance_of(work_.last, work_.oldest, panels_) / steps;
    const double step = distance_of(work_.last, work_.one_before, panels_);
    if (moved <= step)
      return 1.0;
    return step > 0.0 && moved / step < 0x1p53 ? moved / step : 0x1p53;
  }

  // -- Results ------------------------------------------------------------------------------------

  void put(WindowWork &of) {
    apply_transposed(of.whitener, panels_, of.before, of.state);
    apply_panels(of.readout, panels_, of.state, of.next);
    job_.condition[group_] = of.condition;
    job_.residual[group_] = distance_of(of.next, of.newest, panels_);
    if (job_.operators != nullptr)
      put_operators(of);
    if (job_.horizons.count == 0)
      return;
    start(of);
    std::int64_t at = 1;
    for (int h = 0; h < job_.horizons.count; ++h) {
      const std::int64_t horizon = job_.horizons.ascending[h];
      advance(of, horizon - at, levels_of(of));
      at = horizon;
      IntVec diverged{};
      for (int j = 0; j < panels_; ++j)
        diverged |= ~(SimdLanes::abs(of.state[j]) <= SimdLanes::broadcast(kWeightLimit));
      put_endpoint(of, SimdLanes::any(diverged), job_.horizons.slot[h]);
    }
  }

  void put_endpoint(WindowWork &of, bool diverged, int slot) const {
    apply_panels(of.readout, panels_, of.state, of.next);
    const double along = job_.affine ? 0.0 : twice_ * dot_of(of.next, work_.v, panels_);
    char *const row = job_.out.data + slot * job_.out.row;
    for (int j = 0; j < panels_; ++j) {
      Vec end = job_.affine ? of.next[j] + work_.last[j] : of.next[j] - along * work_.v[j];
      end = diverged ? work_.last[j] : end;
      for (int lane = 0; lane < lanes_of(j); ++lane) {
        char *const to = row + place()[j * kLanes + lane] * job_.out.step;
        if (job_.out.is_double)
          put_number<double>(end[lane], to);
        else
          put_number<float>(end[lane], to);
      }
    }
  }

  template <class Out> static void put_number(double x, char *to) {
    const double limit = kLargest<Out>;
    x = x > limit ? limit : x < -limit ? -limit : x;
    const Out one = Out(x);
    __builtin_memcpy(to, &one, sizeof one);
  }

  void put_operators(const WindowWork &of) const {
    const std::int64_t m = shape_.m, first = group_ * m * m;
    const Panels k = power(of, 0);
    for (int i = 0; i < m; ++i) {
      for (int j = 0; j < m; ++j) {
        job_.operators[first + i * m + j] = k.at(j, i);
        job_.whitener[first + i * m + j] = of.whitener.at(i, j);
        job_.readout[first + i * m + j] = of.readout.at(i, j);
      }
      job_.start[group_ * m + i] = of.z[i / kLanes][i % kLanes];
    }
  }

  const FeatureFitJob &job_;
  const Shape shape_;
  const std::int64_t group_;
  const Tasks &tasks_;
  Pieces pieces_;
  GroupWork work_;
  const int panels_;
  double twice_ = 0.0, size_ = 0.0, hindcast_ = 0.0;
};

} // namespace

std::size_t large_fit_memory(const FeatureFitJob &job) {
  Pieces pieces(nullptr);
  GroupWork(pieces, job, Shape(job));
  return pieces.doubles();
}

std::size_t large_fit_scratch(const FeatureFitJob &job) {
  Pieces pieces(nullptr);
  SpanWork(pieces, Shape(job));
  return pieces.doubles();
}

void large_fit(const FeatureFitJob &job, std::int64_t group, const Tasks &tasks, double *memory) {
  if (job.window.is_double)
    LargeFit<double>(job, group, tasks, memory).fit();
  else
    LargeFit<float>(job, group, tasks, memory).fit();
}

} // namespace koopcore::cpu::KOOPCORE_ISA
