// Dynamic mode decomposition of W systems at a time: one system per lane of the vector registers.
//
// The snapshots of a batch are read once, into a panel that stays in the cache: products, modes and
// residuals are made of it. What a lane cannot do is left to koopcore/dmd, which says so in NumPy.
#include "algorithms/modal.h"
#include "algorithms/exponentials.h"
#include "algorithms/subspace.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

#include <cmath>

namespace koopcore::cpu::KOOPCORE_ISA {

namespace {

using Lanes = SimdLanes;
using Complex = ComplexOf<Lanes>;

// An (… × …) array of vectors: entry (i, k) at data[i·row + k·column].
struct Strided {
  const Vec *data;
  std::ptrdiff_t row, column;

  Strided from(std::ptrdiff_t i) const { return {data + i * row, row, column}; }
};

// out (R × C), rows `width` apart, <- Σ_k x(i, k) y(j, k), added to what is there or not.
template <int R, int C>
void product_tile(const Strided &x, const Strided &y, int inner, bool add, Vec *out,
                  std::ptrdiff_t width) {
  Vec s[R][C] = {};
  for (int r = 0; add && r < R; ++r)
    for (int c = 0; c < C; ++c)
      s[r][c] = out[r * width + c];
  const Vec *a = x.data, *b = y.data;
  for (int k = 0; k < inner; ++k, a += x.column, b += y.column) {
    Vec right[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c)
      right[c] = b[c * y.row];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Vec left = a[r * x.row];
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c)
        s[r][c] += left * right[c];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c)
      out[r * width + c] = s[r][c];
}

template <int R>
void product_row(const Strided &x, const Strided &y, int columns, int inner, bool add, Vec *out,
                 std::ptrdiff_t width) {
  int j = 0;
  for (; j + 4 <= columns; j += 4)
    product_tile<R, 4>(x, y.from(j), inner, add, out + j, width);
  if (columns - j == 3)
    product_tile<R, 3>(x, y.from(j), inner, add, out + j, width);
  else if (columns - j == 2)
    product_tile<R, 2>(x, y.from(j), inner, add, out + j, width);
  else if (columns - j == 1)
    product_tile<R, 1>(x, y.from(j), inner, add, out + j, width);
}

// How `product` leaves its result: no tile above the diagonal; added to what is there.
enum Form { kWhole = 0, kLower = 1, kAdded = 2 };

// out (rows × columns) <- Σ_k x(i, k) y(j, k).
void product(const Strided &x, int rows, const Strided &y, int columns, int inner, Vec *out,
             int form = kWhole) {
  const bool add = form & kAdded;
  for (int i = 0; i < rows; i += 4) {
    const int left = rows - i, most = (form & kLower) && i + 4 < columns ? i + 4 : columns;
    const Strided from = x.from(i);
    Vec *to = out + std::ptrdiff_t(i) * columns;
    if (left >= 4)
      product_row<4>(from, y, most, inner, add, to, columns);
    else if (left == 3)
      product_row<3>(from, y, most, inner, add, to, columns);
    else if (left == 2)
      product_row<2>(from, y, most, inner, add, to, columns);
    else
      product_row<1>(from, y, most, inner, add, to, columns);
  }
}

// The same of long sums, a part of x and y after the other: what fits into the first-level cache.
void long_product(const Strided &x, int rows, const Strided &y, int columns, int inner, Vec *out,
                  int form = kWhole) {
  constexpr int kHeld = 448; // vectors of x, and of y where that is another array
  const int part = kHeld / rows < 8 ? 8 : kHeld / rows;
  for (int k = 0; k < inner; k += part)
    product({x.data + k * x.column, x.row, x.column}, rows,
            {y.data + k * y.column, y.row, y.column}, columns, inner - k < part ? inner - k : part,
            out, form | (k > 0 ? kAdded : 0));
}

void mirror(Vec *a, int n) {
  for (int i = 0; i < n; ++i)
    for (int j = i + 1; j < n; ++j)
      a[i * n + j] = a[j * n + i];
}

// The W systems of a batch, and where its arrays lie in the scratch.
class Batch {
public:
  static std::size_t scratch(const ModalJob &job) {
    return (Batch(job, nullptr).end_ - static_cast<Vec *>(nullptr)) * kLanes;
  }

  Batch(const ModalJob &job, double *scratch)
      : job_(job), n_(job.n), m_(job.m), size_(job.size()), r_(job.width),
        stride_(job.m | 1) { // odd: rows that are a page apart share their place in the cache
    at_ = reinterpret_cast<Vec *>(scratch);
    panel_ = take(std::size_t(n_) * stride_);
    gram_ = take(n_ * n_);
    a_ = take(size_ * size_);
    h_ = take(size_ * size_);
    squares_ = take(size_);
    vectors_ = take(size_ * r_);
    image_ = take(size_ * r_);
    ahead_ = take(size_ * r_);
    small_ = take(r_ * r_);
    values_ = reinterpret_cast<Complex *>(take(2 * r_));
    unit_ = reinterpret_cast<Complex *>(take(2 * r_ * r_));
    columns_ = take(r_ * r_);
    pair_ = take(r_);
    mixed_ = take(size_ * r_);
    turned_ = take(size_ * r_);
    mixers_ = take((size_ + 1) * 2 * r_);
    images_ = take(std::size_t(m_) * r_);
    seen_ = take(r_ * n_);
    powers_ = take(2 * r_ * n_);
    sums_ = take(6 * r_ * r_);
    missing_ = take(std::size_t(m_) * r_);
    shared_ = reinterpret_cast<Complex *>(take(2 * r_ * r_));
    right_ = reinterpret_cast<Complex *>(take(2 * r_));
    amplitudes_ = reinterpret_cast<Complex *>(take(2 * r_));
    products_ = take(r_ * r_);
    lengths_ = take(r_);
    residuals_ = take(r_);
    out_ = take(2 * r_);
    work_ = take(5 * r_);
    end_ = at_;
  }

  // The products of the systems first … first + count - 1.
  void prepare(std::int64_t first, int count) {
    read(first, count);
    products();
    const Vec trace = energy();
    fine_ = (trace > 1e-200) & (trace < 1e200);
  }

  const Vec *a() const { return a_; }
  Vec *squares() { return squares_; }
  Vec *vectors() { return vectors_; }

  // Where the eigenvalues of a, in `squares`, were found: how many of them to keep. Returns the
  // most that a lane does.
  int keep(const Vec &found) {
    fine_ &= found > 0.5;
    rank_ = modal_rank<Lanes>(squares_, size_, job_.rank);
    narrow_ = rank_ > double(r_);
    rank_ = narrow_ ? Vec{} : rank_;
    int most = 1;
    for (int lane = 0; lane < kLanes; ++lane)
      if (fine_[lane] && rank_[lane] > most)
        most = int(rank_[lane]);
    return most;
  }

  const Vec &rank() const { return rank_; }
  Complex *values() { return values_; }
  Vec *pair() { return pair_; }
  Vec *columns() { return columns_; }

  // `vectors` (size × width) are there: K, in the result (width × width).
  const Vec *small_operator(int width) {
    width_ = width;
    whiten();
    return small_;
  }

  // Eigenvalues and columns of the small operator are there, where `found` says so.
  void finish(std::int64_t first, int count, const IntVec &found) {
    fine_ &= found;
    product({vectors_, width_, 1}, size_, {columns_, 1, width_}, width_, width_, mixed_);
    modes();
    amplitudes();
    for (int lane = 0; lane < count; ++lane) {
      job_.status[first + lane] = !fine_[lane] ? kLeft : narrow_[lane] ? kNarrow : kDone;
      job_.ranks[first + lane] = fine_[lane] ? std::int64_t(rank_[lane]) : 0;
    }
    write(first, count);
  }

private:
  static constexpr std::int64_t kDone = 0, kNarrow = 1, kLeft = 2;

  Vec *take(std::size_t count) {
    Vec *at = at_;
    at_ += count;
    return at;
  }

  // The pairs of snapshots are columns: fewer than rows of a snapshot, or the other way round.
  bool on_snapshots() const { return job_.on_snapshots(); }

  void read(std::int64_t first, int count) {
    if (job_.is_double)
      read_as<double>(first, count);
    else
      read_as<float>(first, count);
  }

  template <class T> void read_as(std::int64_t first, int count) {
    const char *system[kLanes];
    for (int lane = 0; lane < kLanes; ++lane)
      system[lane] = job_.data + (first + (lane < count ? lane : 0)) * job_.step;
    const std::ptrdiff_t ahead = 2 * kLanes * job_.step; // what is read next in this place
    const std::size_t bytes = m_ * sizeof(T);
    for (int lane = 0; lane < count; ++lane)
      __builtin_memcpy(job_.newest + (first + lane) * bytes, system[lane] + (n_ - 1) * bytes,
                       bytes);
    for (int t = 0; t < n_; ++t) {
      Vec *row = panel_ + std::size_t(t) * stride_;
      const std::ptrdiff_t at = std::ptrdiff_t(t) * m_ * sizeof(T);
      int f = 0;
      for (; f + kLanes <= m_; f += kLanes) {
        for (int lane = 0; lane < kLanes; ++lane) {
          const char *from = system[lane] + at + f * sizeof(T);
          row[f + lane] = load<T>(from);
          __builtin_prefetch(from + ahead, 0, 1);
        }
        transpose(row + f);
      }
      for (; f < m_; ++f)
        for (int lane = 0; lane < kLanes; ++lane) {
          T one;
          __builtin_memcpy(&one, system[lane] + at + f * sizeof(T), sizeof one);
          row[f][lane] = one;
        }
    }
  }

  Strided snapshots(int from) const { // (n, m)
    return {panel_ + std::size_t(from) * stride_, stride_, 1};
  }
  Strided features(int from) const { // (m, n)
    return {panel_ + std::size_t(from) * stride_, 1, stride_};
  }

  // a, and of snapshots h, on the side of which there are fewer.
  void products() {
    if (!on_snapshots()) {
      long_product(features(0), m_, features(0), m_, n_ - 1, a_, kLower);
      mirror(a_, m_);
      return;
    }
    long_product(snapshots(0), n_, snapshots(0), n_, m_, gram_, kLower);
    mirror(gram_, n_);
    for (int i = 0; i < size_; ++i)
      for (int j = 0; j < size_; ++j) {
        Vec a = gram_[i * n_ + j], h = gram_[i * n_ + j + 1];
        for (int k = 1; k < job_.delays; ++k) {
          a += gram_[(i + k) * n_ + j + k];
          h += gram_[(i + k) * n_ + j + k + 1];
        }
        a_[i * size_ + j] = a;
        h_[i * size_ + j] = h;
      }
  }

  // Not finite where a snapshot is not, the last one too.
  Vec energy() const {
    Vec sum = {};
    for (int i = 0; on_snapshots() && i < n_; ++i)
      sum += gram_[i * n_ + i];
    for (int i = 0; !on_snapshots() && i < m_; ++i) {
      const Vec last = panel_[std::size_t(n_ - 1) * stride_ + i];
      sum += a_[i * m_ + i] + last * last;
    }
    return sum;
  }

  // K = Pᵀ h P S of P, which `vectors_` become, with S = σ²/(σ² + ridge · mean).
  void whiten() {
    const int w = width_;
    Vec mean = {};
    for (int k = 0; k < w; ++k)
      mean += rank_ > k + 0.5 ? squares_[k] : Vec{};
    mean /= Lanes::max(rank_, Lanes::broadcast(1.0));
    for (int k = 0; k < w; ++k) {
      const IntVec some = kept(k);
      const Vec root = Lanes::sqrt(some ? squares_[k] : Lanes::broadcast(1.0));
      const Vec over = some ? 1.0 / root : Vec{};
      for (int i = 0; i < size_; ++i)
        vectors_[i * w + k] *= over;
    }
    step();
    product({vectors_, 1, w}, w, {ahead_, 1, w}, w, size_, small_);
    if (job_.ridge > 0.0)
      for (int k = 0; k < w; ++k) {
        const Vec square = rank_ > k + 0.5 ? squares_[k] : Lanes::broadcast(1.0);
        const Vec shrink = square / (square + job_.ridge * mean);
        for (int i = 0; i < w; ++i)
          small_[i * w + k] *= shrink;
        for (int i = 0; i < size_; ++i) {
          vectors_[i * w + k] *= shrink;
          ahead_[i * w + k] *= shrink;
        }
      }
  }

  // `ahead_` (size × width) <- h P: of features F' (Fᵀ P) where h itself would cost more.
  void step() {
    const int w = width_;
    if (!on_snapshots() && 2 * r_ < m_) { // whatever other systems' ranks are
      product(snapshots(0), n_ - 1, {vectors_, 1, w}, w, m_, seen_);
      product(features(1), m_, {seen_, 1, w}, w, n_ - 1, ahead_);
      return;
    }
    if (!on_snapshots())
      long_product(features(1), m_, features(0), m_, n_ - 1, h_);
    product({h_, size_, 1}, size_, {vectors_, 1, w}, w, size_, ahead_);
  }

  // `mixers_` (n × 2 width) <- what makes the modes' columns F' g, or F g, of the snapshots, and
  // F' g - F g Λ of them.
  void mix_snapshots() {
    const int w = width_;
    for (int t = 0; t <= size_; ++t)
      for (int i = 0; i < w; ++i) {
        const Vec now = t < size_ ? mixed_[t * w + i] : Vec{};
        const Vec then = t > 0 ? mixed_[(t - 1) * w + i] : Vec{};
        mixers_[t * 2 * w + i] = job_.exact ? then : now;
        mixers_[t * 2 * w + w + i] = t < size_ ? then - turned_[t * w + i] : then;
      }
  }

  // `images_` (m × width) <- the first block of the modes' columns.
  void images() {
    const int w = width_;
    if (on_snapshots())
      product(features(0), m_, {mixers_, 1, 2 * w}, w, size_ + 1, images_);
    else if (job_.exact)
      product({ahead_, w, 1}, m_, {columns_, 1, w}, w, w, images_);
    else
      for (int i = 0; i < m_ * w; ++i)
        images_[i] = image_[i];
  }

  // error (width) <- Σ |F' g - F g Λ|² of the real columns; size: Σ |F g|².
  void errors(const Vec *size, Vec *error) {
    const int w = width_;
    IntVec lost[kMostModes];
    const bool some = on_snapshots() && job_.delays == 1;
    if (some) { // of the products, unless they would cancel
      const Vec *g = mixers_ + w;
      product({gram_, n_, 1}, n_, {g, 1, 2 * w}, w, n_, missing_of_products());
      const Vec *image = missing_of_products();
      IntVec any = {};
      for (int k = 0; k < w; ++k) {
        Vec sum = {}, bound = {};
        for (int t = 0; t < n_; ++t) {
          const Vec one = g[t * 2 * w + k];
          sum += one * image[t * w + k];
          bound += one * one * gram_[t * n_ + t];
        }
        error[k] = sum;
        lost[k] = kept(k) & fine_ & ~(sum * size[k] > 4e-14 * bound * bound); // to 1e-8
        any |= lost[k];
      }
      if (!Lanes::any(any))
        return;
    }
    Vec sums[kMostModes] = {};
    for (int block = 0; block < job_.delays; ++block) {
      if (on_snapshots()) {
        product(features(block), m_, {mixers_ + w, 1, 2 * w}, w, size_ + 1, missing_);
      } else {
        product({ahead_, w, 1}, m_, {columns_, 1, w}, w, w, missing_);
        product({a_, m_, 1}, m_, {turned_, 1, w}, w, m_, mixers_);
        for (int i = 0; i < m_ * w; ++i)
          missing_[i] -= mixers_[i];
      }
      for (int i = 0; i < m_; ++i)
        for (int k = 0; k < w; ++k) {
          const Vec missing = missing_[i * w + k];
          sums[k] += missing * missing;
        }
    }
    for (int k = 0; k < w; ++k)
      error[k] = some ? Lanes::select(lost[k], sums[k], error[k]) : sums[k];
  }
  Vec *missing_of_products() { return seen_; } // (n × width)

  Complex entry(const Vec *row, int k) const { return mode_entry<Lanes>(row, pair_, k, width_); }

  // Residuals, and in `images_` the real columns of the modes, with their lengths.
  void modes() {
    const int w = width_;
    Vec error[kMostModes] = {}, size[kMostModes] = {};
    for (int i = 0; i < size_; ++i) // g Λ
      for (int k = 0; k < w; ++k) {
        const Complex g = values_[k] * entry(mixed_ + i * w, k);
        turned_[i * w + k] = pair_[k] > 1.5 ? -g.im : g.re;
      }
    product({a_, size_, 1}, size_, {mixed_, 1, w}, w, size_, image_);
    const Vec *other = on_snapshots() ? mixed_ : image_; // F g itself, where it is a g
    for (int i = 0; i < size_; ++i)
      for (int k = 0; k < w; ++k)
        size[k] += image_[i * w + k] * other[i * w + k];
    if (on_snapshots())
      mix_snapshots();
    errors(size, error);
    images();
    const auto whole = [&](const Vec *parts, int k) { // of a pair: both of its parts
      Vec sum = parts[k];
      if (k + 1 < w)
        sum += (pair_[k] > 0.5) & (pair_[k] < 1.5) ? parts[k + 1] : Vec{};
      if (k > 0)
        sum += pair_[k] > 1.5 ? parts[k - 1] : Vec{};
      return sum;
    };
    const Strided columns{images_, 1, w};
    product(columns, w, columns, w, m_, products_, kLower);
    mirror(products_, w);
    for (int k = 0; k < w; ++k) {
      residuals_[k] = Lanes::sqrt(whole(error, k) / whole(size, k));
    }
    for (int k = 0; k < w; ++k) {
      mode_products(k);
      lengths_[k] = Lanes::sqrt(shared_[k * w + k].re);
    }
  }

  // Column k, from the diagonal on, of `shared_` <- φ_jᴴ φ_k of the modes before they have unit
  // length.
  void mode_products(int k) {
    const int w = width_;
    Vec re[kMostModes], im[kMostModes]; // Cᵀ φ_k
    for (int i = 0; i < w; ++i) {
      const Complex right = entry(products_ + i * w, k);
      re[i] = right.re;
      im[i] = right.im;
    }
    for (int j = k; j < w; ++j) { // φ_j = C u: φ_jᴴ y = conj(u)ᵀ (Cᵀ y)
      const Complex of_re = entry(re, j), of_im = entry(im, j);
      shared_[j * w + k] = {of_re.re + of_im.im, of_im.re - of_re.im};
    }
  }

  void amplitudes() {
    const int w = width_;
    const int last = job_.optimal ? n_ : job_.delays;
    // Cᵀ x_t (w × last), from the products where there are fewer of them.
    if (on_snapshots() && job_.delays == 1 && job_.exact)
      product({mixed_, 1, w}, w, {gram_ + n_, 1, n_}, last, size_, seen_);
    else if (on_snapshots() && job_.delays == 1)
      product({mixed_, 1, w}, w, {gram_, 1, n_}, last, size_, seen_);
    else
      product({images_, 1, w}, w, snapshots(0), last, m_, seen_);
    Vec over[kMostModes];
    for (int k = 0; k < w; ++k)
      over[k] = lengths_[k] > 0.0 ? 1.0 / lengths_[k] : Vec{};
    Vec scale[kMostModes]; // of growing modes |λ|^(1-n)
    for (int k = 0; k < w; ++k) {
      scale[k] = k > 0 ? scale[k - 1] : Vec{};
      vandermonde(k, last, scale[k]);
    }
    const Strided powers{powers_, last, 1};
    Vec *squares = sums_, *rights = sums_ + 4 * w * w; // (2 w × 2 w), (2 w × w)
    product(powers, 2 * w, powers, 2 * w, last, squares, kLower);
    product(powers, 2 * w, {seen_, last, 1}, w, last, rights);
    for (int j = 0; j < w; ++j)
      for (int k = 0; k <= j; ++k) {
        const Vec *re = squares + 4 * w * j + 2 * k, *im = re + 2 * w;
        const Complex sum = {re[0] + im[1], k < j ? re[1] - im[0] : Vec{}};
        const Complex entry = (over[j] * over[k]) * (shared_[j * w + k] * sum);
        shared_[j * w + k] = entry;
        shared_[k * w + j] = conjugate<Lanes>(entry);
      }
    for (int j = 0; j < w; ++j) { // conj(Σ λᵗ φ_jᵀ x_t)
      const Complex re = entry(rights + 2 * j * w, j), im = entry(rights + (2 * j + 1) * w, j);
      right_[j] = {over[j] * (re.re - im.im), -(over[j] * (re.im + im.re))};
    }
    HermitianSolver<Lanes> solver(shared_, w, unit_, work_); // whose room the eigenvectors leave
    fine_ &= solver.least > modal_steep();
    solver.solve(right_, amplitudes_);
    for (int k = 0; k < w; ++k)
      amplitudes_[k] = scale[k] * amplitudes_[k];
  }

  // Rows 2 k and 2 k + 1 of powers_ (2 w × count) <- λᵗ s, at most one in magnitude, with s =
  // |λ|^(1 - count) of growing ones, which is `scale`: before, that of the mode before.
  void vandermonde(int k, int count, Vec &scale) {
    const Vec one = Lanes::broadcast(1.0), zero = Vec{};
    const Vec square = square_of<Lanes>(values_[k]), size = Lanes::sqrt(square);
    const IntVec growing = size > 1.0;
    const Vec over = growing ? one / size : one;
    const Complex phase = over * values_[k];                // unit where it grows
    const Complex inverse = over * conjugate<Lanes>(phase); // 1/λ where it grows
    const Complex step = choose<Lanes>(growing, inverse, values_[k]);
    Vec *re = powers_ + 2 * k * count, *im = re + count;
    if (k > 0 && all_second(k)) // written with those before, whose conjugates they are
      return;
    const bool two = k + 1 < width_ && all_second(k + 1);
    const auto put = [&](int t, const Complex &power) {
      re[t] = power.re;
      im[t] = power.im;
      if (two) {
        re[t + 2 * count] = power.re;
        im[t + 2 * count] = -power.im;
      }
    };
    Complex power = {one, zero};
    for (int t = 0; t < count; ++t) {
      put(t, power);
      power = power * step;
    }
    scale = one;
    if (!Lanes::any(growing))
      return;
    Complex turn = {one, zero}, factor = choose<Lanes>(growing, phase, turn);
    Vec shrink = over;
    for (int left = count - 1; left > 0; left /= 2) { // turn = factor^(count - 1)
      if (left & 1) {
        turn = turn * factor;
        scale *= shrink;
      }
      factor = factor * factor;
      shrink *= shrink;
    }
    for (int t = 0; 2 * t < count; ++t) { // growing ones: backwards from the end
      const int back = count - 1 - t;
      const Complex early = {re[t], im[t]}, late = {re[back], im[back]};
      put(t, choose<Lanes>(growing, turn * late, early));
      put(back, choose<Lanes>(growing, turn * early, late));
    }
  }

  bool all_second(int k) const { return !Lanes::any(~(pair_[k] > 1.5)); }

  IntVec kept(int k) const {
    if (k >= width_)
      return IntVec{};
    return rank_ > k + 0.5;
  }

  void write(std::int64_t first, int count) {
    const int w = width_;
    const Vec nan = Lanes::broadcast(__builtin_nan(""));
    const auto put = [&](const Vec *from, int entries, double *to) {
      from_lanes(from, entries, count, entries, to + first * entries);
    };
    for (int k = 0; k < r_; ++k) {
      const IntVec some = kept(k);
      const int at = k < w ? k : 0;
      out_[2 * k] = some ? values_[at].re : nan;
      out_[2 * k + 1] = some ? values_[at].im : Vec{};
    }
    put(out_, 2 * r_, job_.values);
    for (int k = 0; k < r_; ++k) {
      const IntVec some = kept(k);
      const int at = k < w ? k : 0;
      out_[2 * k] = some ? amplitudes_[at].re : Vec{};
      out_[2 * k + 1] = some ? amplitudes_[at].im : Vec{};
    }
    put(out_, 2 * r_, job_.amplitudes);
    for (int k = 0; k < r_; ++k)
      out_[k] = kept(k) ? residuals_[k < w ? k : 0] : nan;
    put(out_, r_, job_.residuals);
    for (int k = 0; k < size_; ++k)
      squares_[k] = Lanes::sqrt(squares_[k]);
    put(squares_, size_, job_.singular);
    // Entries of the modes from those of the real columns: two products each, and no choice.
    struct Share {
      Vec re, re_before, im, im_after;
    } share[kMostModes];
    for (int k = 0; k < w; ++k) {
      const Vec zero = {};
      const Vec over = kept(k) & IntVec(lengths_[k] > 0.0) ? 1.0 / lengths_[k] : zero;
      const IntVec second = pair_[k] > 1.5, first_of_two = (pair_[k] > 0.5) & ~second;
      share[k] = {second ? zero : over, second ? over : zero, second ? -over : zero,
                  first_of_two ? over : zero};
    }
    double *to = job_.modes + first * 2 * m_ * r_;
    Vec block[kLanes]; // entries that are written together
    int held = 0;
    const auto put_one = [&](const Vec &x) {
      block[held++] = x;
      if (held < kLanes)
        return;
      transpose(block);
      for (int lane = 0; lane < count; ++lane)
        __builtin_memcpy(to + std::ptrdiff_t(lane) * 2 * m_ * r_, &block[lane], sizeof(Vec));
      to += kLanes;
      held = 0;
    };
    for (int i = 0; i < m_; ++i) {
      const Vec *row = images_ + std::ptrdiff_t(i) * w;
      for (int k = 0; k < w; ++k) {
        const Vec before = row[k > 0 ? k - 1 : k], after = row[k + 1 < w ? k + 1 : k];
        put_one(share[k].re * row[k] + share[k].re_before * before);
        put_one(share[k].im * row[k] + share[k].im_after * after);
      }
      for (int k = 2 * w; k < 2 * r_; ++k)
        put_one(Vec{});
    }
    for (int i = 0; i < held; ++i)
      for (int lane = 0; lane < count; ++lane)
        to[std::ptrdiff_t(lane) * 2 * m_ * r_ + i] = block[i][lane];
  }

  static constexpr int kMostModes = kMostModalRows;

  const ModalJob &job_;
  const int n_, m_, size_, r_;
  const std::ptrdiff_t stride_;
  int width_ = 0; // modes of the lanes at most
  Vec rank_;
  IntVec fine_, narrow_; // systems that need no other way, and those of a higher rank
  Vec *at_, *end_;
  Vec *panel_, *gram_, *a_, *h_, *squares_, *vectors_, *image_, *ahead_, *small_, *columns_;
  Vec *pair_, *mixed_, *turned_, *mixers_, *images_, *seen_, *products_, *lengths_, *residuals_;
  Vec *powers_, *sums_, *missing_;
  Vec *out_, *work_;
  Complex *values_, *unit_, *shared_, *right_, *amplitudes_;
};

// The eigendecompositions of a batch, and of another beside it.
class PairEigen {
  using Real = PairLanes::Real;
  using Numbers = ComplexOf<PairLanes>;

public:
  static std::size_t numbers(const ModalJob &job) {
    const int ends = symmetric_rotations(job.size());
    const PairEigen all(job, nullptr);
    return (reinterpret_cast<const Real *>(all.ends_) - static_cast<const Real *>(nullptr)) * 2 *
               kLanes +
           (ends + 1) / 2;
  }

  PairEigen(const ModalJob &job, double *scratch)
      : size_(job.size()), a_(reinterpret_cast<Real *>(scratch)), squares_(a_ + size_ * size_),
        vectors_(squares_ + size_), pair_(vectors_ + size_ * job.width),
        columns_(pair_ + job.width), other_(columns_ + job.width * job.width),
        schur_(other_ + job.width),
        values_(reinterpret_cast<Numbers *>(schur_ + schur_work(job.width))),
        unit_(values_ + job.width), work_(reinterpret_cast<Real *>(unit_ + job.width * job.width)),
        ends_(reinterpret_cast<int *>(work_ + symmetric_work(size_))) {}

  // From the products of both batches to eigenvalues and columns of their small operators.
  // Returns where these were found.
  void run(Batch &one, Batch &two, IntVec &found_one, IntVec &found_two) {
    const int most = symmetric(one, two);
    const Vec *first = one.small_operator(most);
    const Vec *second = &two == &one ? first : two.small_operator(most);
    Schur<PairLanes> schur(most, schur_);
    for (int i = 0; i < most * most; ++i)
      schur.h[i] = {first[i], second[i]};
    const Real rank = {one.rank(), two.rank()};
    const Real found = as_number(schur.decompose(rank, values_, unit_, pair_));
    sort_modes<PairLanes>(values_, unit_, pair_, rank, most, columns_, other_);
    found_one = found.a > 0.5;
    found_two = found.b > 0.5;
    for (int k = 0; k < most; ++k) {
      one.values()[k] = {values_[k].re.a, values_[k].im.a};
      two.values()[k] = {values_[k].re.b, values_[k].im.b};
      one.pair()[k] = pair_[k].a;
      two.pair()[k] = pair_[k].b;
    }
    for (int i = 0; i < most * most; ++i) {
      one.columns()[i] = columns_[i].a;
      two.columns()[i] = columns_[i].b;
    }
  }

private:
  static Real as_number(const PairLanes::Mask &mask) {
    return PairLanes::select(mask, PairLanes::broadcast(1.0), PairLanes::broadcast(0.0));
  }

  int symmetric(Batch &one, Batch &two) {
    for (int i = 0; i < size_ * size_; ++i)
      a_[i] = {one.a()[i], two.a()[i]};
    SymmetricEigen<PairLanes> eigen(a_, size_, work_, ends_);
    const Real found = as_number(eigen.values(squares_));
    for (int i = 0; i < size_; ++i) {
      one.squares()[i] = squares_[i].a;
      two.squares()[i] = squares_[i].b;
    }
    const int first = one.keep(found.a), second = two.keep(found.b);
    const int most = first > second ? first : second;
    eigen.vectors(most, vectors_);
    for (int i = 0; i < size_ * most; ++i) {
      one.vectors()[i] = vectors_[i].a;
      two.vectors()[i] = vectors_[i].b;
    }
    return most;
  }

  const int size_;
  Real *a_, *squares_, *vectors_, *pair_, *columns_, *other_, *schur_;
  Numbers *values_, *unit_;
  Real *work_;
  int *ends_;
};

} // namespace

std::size_t modal_fit_scratch(const ModalJob &job) {
  return 2 * Batch::scratch(job) + PairEigen::numbers(job);
}

void modal_fit_batch(const ModalJob &job, std::int64_t first, int count, double *scratch) {
  const std::size_t each = Batch::scratch(job);
  Batch one(job, scratch), two(job, scratch + each);
  PairEigen eigen(job, scratch + 2 * each);
  const int some = count < kLanes ? count : kLanes, others = count - some;
  one.prepare(first, some);
  if (others > 0)
    two.prepare(first + some, others);
  IntVec found, found_other;
  eigen.run(one, others > 0 ? two : one, found, found_other);
  one.finish(first, some, found);
  if (others > 0)
    two.finish(first + some, others, found_other);
}

std::size_t exponent_fit_scratch(const ExponentJob &job) {
  return std::size_t(job.n * job.k + exponent_work(job.k, job.r) + 4 * job.r) * kLanes;
}

void exponent_fit_batch(const ExponentJob &job, std::int64_t first, int count, double *scratch) {
  const int n = job.n, k = job.k, r = job.r;
  Vec *c = reinterpret_cast<Vec *>(scratch), *used = c + n * k, *limit = used + r;
  Complex *alpha = reinterpret_cast<Complex *>(limit + r);
  Vec *work = reinterpret_cast<Vec *>(alpha + r);
  to_lanes(job.c + first * n * k, n * k, count, n * k, c);
  to_lanes(job.start + first * 2 * r, 2 * r, count, 2 * r, reinterpret_cast<Vec *>(alpha));
  const Vec zero = {}, one = Lanes::broadcast(1.0);
  for (int i = 0; i < r; ++i) {
    const IntVec some = (alpha[i].re == alpha[i].re) & (alpha[i].im == alpha[i].im);
    used[i] = some ? one : zero;
    alpha[i] = choose<Lanes>(some, alpha[i], Complex{zero, zero});
    const Vec above = Lanes::max(alpha[i].re, zero) + job.headroom;
    limit[i] = above > job.ceiling ? Lanes::broadcast(job.ceiling) : above;
  }
  const auto powers = [&](const Complex *at, Complex *ratio, Complex *phi) {
    for (int i = 0; i < r; ++i)
      for (int lane = 0; lane < kLanes; ++lane) {
        const double re = at[i].re[lane], im = at[i].im[lane], step = 1.0 / (n - 1);
        const double size = std::exp(re * step);
        ratio[i].re[lane] = size * std::cos(im * step);
        ratio[i].im[lane] = size * std::sin(im * step);
        const double start = re > 0.0 ? std::exp(-re) : 1.0; // at most one, at the end
        phi[i].re[lane] = re > 0.0 ? start * std::cos(im) : 1.0;
        phi[i].im[lane] = re > 0.0 ? -start * std::sin(im) : 0.0;
      }
  };
  const auto pair = [&](Complex *at) {
    for (int lane = 0; lane < count; ++lane) {
      const std::int64_t *partner = job.partner + (first + lane) * r;
      for (int i = 0; i < r; ++i) {
        const int other = int(partner[i]);
        if (other < i) // done with the other one
          continue;
        const double re = 0.5 * (at[i].re[lane] + at[other].re[lane]);
        const double im = 0.5 * (at[i].im[lane] - at[other].im[lane]);
        at[i].re[lane] = at[other].re[lane] = re;
        at[i].im[lane] = im;
        at[other].im[lane] = -im;
      }
    }
  };
  ExponentFit<Lanes> fit({n, k, r, job.most}, c, used, limit, work);
  Vec error, stop, iterations;
  fit.run(alpha, error, stop, iterations, powers, pair);
  const Vec nan = Lanes::broadcast(__builtin_nan(""));
  for (int i = 0; i < r; ++i)
    alpha[i] = choose<Lanes>(used[i] > 0.5, alpha[i], Complex{nan, nan});
  from_lanes(reinterpret_cast<Vec *>(alpha), 2 * r, count, 2 * r, job.alpha + first * 2 * r);
  for (int lane = 0; lane < count; ++lane) {
    job.error[first + lane] = error[lane];
    job.stop[first + lane] = std::int64_t(stop[lane]);
    job.iterations[first + lane] = std::int64_t(iterations[lane]);
  }
}

std::size_t leading_scratch(const LeadingJob &job) {
  const int n = job.n, wanted = job.count_wanted;
  return std::size_t(n * n + 2 * n * wanted + n + symmetric_work(n) + subspace_work(n, wanted)) *
             kLanes +
         (symmetric_rotations(n) + 1) / 2;
}

void leading_batch(const LeadingJob &job, std::int64_t first, int count, double *scratch) {
  const int n = job.n, wanted = job.count_wanted;
  Vec *a = reinterpret_cast<Vec *>(scratch);
  to_lanes(job.matrices + first * n * n, n * n, count, n * n, a);
  Vec *vectors = a + n * n, *other = vectors + n * wanted, *all = other + n * wanted;
  Vec *full = all + n, *iterated = full + symmetric_work(n);
  int *ends = reinterpret_cast<int *>(iterated + subspace_work(n, wanted));
  Subspace<Lanes> space(a, n, wanted, iterated);
  Vec trace = {};
  for (int i = 0; i < n; ++i)
    trace += a[i * n + i];
  const Vec root = Lanes::power_of_two_scale(trace), scale = root * root;
  for (int i = 0; i < n * n; ++i)
    a[i] *= scale;
  IntVec settled = space.run();
  for (int k = 0; k < wanted; ++k)
    for (int i = 0; i < n; ++i)
      vectors[i * wanted + k] = space.y[i * space.w + k];
  const IntVec rest = ~settled;
  if (Lanes::any(rest)) { // eigenvalues without a gap: all of them
    SymmetricEigen<Lanes> eigen(a, n, full, ends);
    settled |= eigen.values(all);
    eigen.vectors(wanted, other);
    for (int k = 0; k < wanted; ++k)
      space.ritz[k] = rest ? all[k] : space.ritz[k];
    for (int i = 0; i < n * wanted; ++i)
      vectors[i] = rest ? other[i] : vectors[i];
  }
  for (int k = 0; k < wanted; ++k)
    space.ritz[k] /= scale;
  from_lanes(space.ritz, wanted, count, wanted, job.values + first * wanted);
  from_lanes(vectors, n * wanted, count, n * wanted, job.vectors + first * n * wanted);
  for (int lane = 0; lane < count; ++lane)
    job.settled[first + lane] = settled[lane] != 0;
}

std::size_t delay_start_scratch(const DelayStartJob &job) {
  const int q = job.columns(), r = job.r;
  return std::size_t(job.n * job.k + q * q + 2 * (q - 1) * (q - 1) + 2 * (q - 1) * r +
                     subspace_work(q - 1, r) + schur_work(r) + 3 * r + 2 * r * r) *
         kLanes;
}

// The eigenvalues of one step of delayed coordinates, from products of Hankel matrices.
void delay_start_batch(const DelayStartJob &job, std::int64_t first, int count, double *scratch) {
  const int n = job.n, k = job.k, r = job.r, q = job.columns(), pairs = q - 1;
  Vec *c = reinterpret_cast<Vec *>(scratch), *hankel = c + n * k, *a = hankel + q * q;
  Vec *h = a + pairs * pairs, *p = h + pairs * pairs, *image = p + pairs * r;
  Vec *schur_space = image + pairs * r;
  Complex *values = reinterpret_cast<Complex *>(schur_space + schur_work(r));
  Vec *pair = reinterpret_cast<Vec *>(values + r);
  Complex *vectors = reinterpret_cast<Complex *>(pair + r);
  Vec *work = reinterpret_cast<Vec *>(vectors + r * r);
  to_lanes(job.c + first * n * k, n * k, count, n * k, c);
  const auto dot = [&](int i, int j) {
    Vec sum = {};
    for (int l = 0; l < k; ++l)
      sum += c[i * k + l] * c[j * k + l];
    return sum;
  };
  for (int lag = 0; lag < q; ++lag) { // along the diagonals one product comes and one goes
    Vec sum = {};
    for (int l = 0; l < job.delays; ++l)
      sum += dot(lag + l, l);
    for (int j = 0; j + lag < q; ++j) {
      hankel[(j + lag) * q + j] = hankel[j * q + j + lag] = sum;
      if (j + lag + 1 < q)
        sum += dot(j + lag + job.delays, j + job.delays) - dot(j + lag, j);
    }
  }
  Vec trace = {};
  for (int i = 0; i < pairs; ++i)
    trace += hankel[i * q + i];
  const Vec root = Lanes::power_of_two_scale(trace), scale = root * root;
  for (int i = 0; i < pairs; ++i)
    for (int j = 0; j < pairs; ++j) {
      a[i * pairs + j] = hankel[i * q + j] * scale;
      h[i * pairs + j] = hankel[i * q + j + 1] * scale;
    }
  Subspace<Lanes> space(a, pairs, r, work);
  IntVec fine = space.run() & (trace > 1e-200) & (trace < 1e200);
  Vec rank = {};
  for (int i = 0; i < r; ++i) {
    const IntVec some = space.ritz[i] > modal_floor(n) * space.ritz[0];
    rank += some ? Lanes::broadcast(1.0) : Vec{};
    const Vec over = some ? 1.0 / Lanes::sqrt(some ? space.ritz[i] : Lanes::broadcast(1.0)) : Vec{};
    for (int j = 0; j < pairs; ++j)
      p[j * r + i] = space.y[j * space.w + i] * over;
  }
  multiply<Lanes, Left::plain>(h, p, pairs, pairs, r, image);
  Schur<Lanes> schur(r, schur_space);
  multiply<Lanes, Left::transposed>(p, image, r, pairs, r, schur.h);
  fine &= schur.decompose(rank, values, vectors, pair);
  for (int lane = 0; lane < count; ++lane) {
    job.settled[first + lane] = fine[lane] != 0;
    double *to = job.values + (first + lane) * 2 * r;
    for (int i = 0; i < r; ++i) {
      const bool some = i < rank[lane];
      to[2 * i] = some ? values[i].re[lane] : __builtin_nan("");
      to[2 * i + 1] = some ? values[i].im[lane] : 0.0;
    }
  }
}

} // namespace koopcore::cpu::KOOPCORE_ISA
