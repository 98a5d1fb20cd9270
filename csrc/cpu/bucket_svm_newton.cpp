#include "bucket_svm_newton.h"

#include "bucket_svm_lanes.h"
#include "svm_factor.h"

namespace mach {
namespace {

constexpr int64_t kLineSteps = 20, kConjugateSteps = 8;
constexpr int64_t kColumnsOfStep = 64;   // D for which a factor of its own costs about a step more
constexpr double kLineTolerance = 1e-2;  // of the length of a step
constexpr double kForcing = 0.1;         // how much a step lowers the residual
constexpr double kNearEnough = 4;        // times the tolerance: the gradient that is worth a look
constexpr double kTiny = 1e-300, kInfinity = __builtin_inf();

using Sums = Vector<double, kSvmTile>;

// 1 or -1 in each lane.
template <class T>
inline void signs_of(uint32_t positives, Lanes<T>& y) {
  for (int64_t j = 0; j < kSvmTile; ++j) y[j] = ((positives >> j) & 1u) ? T(1) : T(-1);
}

template <class T>
inline bool any(const Lanes<T>& x) {
  T sum = 0;
  for (int64_t j = 0; j < kSvmTile; ++j) sum += x[j] != T(0) ? T(1) : T(0);
  return sum != T(0);
}

template <class Isa, class T>
class Newton {
 public:
  Newton(const BucketSvm<T>& p, const T* factor, const SvmScratch<T>& s, const SvmNewtonScratch<T>& newton)
      : p_(p),
        factor_(factor),
        scratch_(newton),
        size_(p.D + 1),
        positives_(s.positives),
        w_(lanes(s.w)),
        residual_(lanes(newton.residual)),
        direction_(lanes(newton.direction)),
        search_(lanes(newton.search)),
        product_(lanes(newton.product)),
        slack_(lanes(newton.slack)),
        change_(lanes(newton.change)),
        change_of_search_(lanes(newton.change_of_search)) {
    for (int64_t j = 0; j < kSvmTile; ++j) live_[j] = (s.used >> j) & 1u ? 1 : 0;
  }

  SvmResult solve() {
    start();
    const Lanes<T> used = __builtin_convertvector(live_, Lanes<T>);
    for (int64_t f = 0; f < size_; ++f) w_[f] *= used;
    set_slack();
    while (!within_tolerance() && violation_ < kInfinity && sweeps_ < 2 * p_.max_passes) {
      find_direction();
      Sums steps;
      line_search(steps);
      const Lanes<T> length = __builtin_convertvector(steps, Lanes<T>);
      for (int64_t f = 0; f < size_; ++f) w_[f] += length * direction_[f];
      for (int64_t n = 0; n < p_.N; ++n) slack_[n] += length * change_[n];
    }
    return {(sweeps_ + 1) / 2, violation_};
  }

 private:
  static Lanes<T>* lanes(T* pointer) { return reinterpret_cast<Lanes<T>*>(pointer); }

  // The optimum if every document had a positive hinge.
  void start() {
    for (int64_t f = 0; f < size_; ++f) residual_[f] = Lanes<T>{};
    const T twice = 2 * p_.C;
    Lanes<T> y;
    for (int64_t n = 0; n < p_.N; ++n) {
      signs_of<T>(positives_[n], y);
      svm_add_document<Isa, T>(p_, n, twice * y, residual_);
    }
    ++sweeps_;
    precondition(residual_, w_);
  }

  void set_slack() {
    Lanes<T> y, z;
    for (int64_t n = 0; n < p_.N; ++n) {
      svm_scores<Isa, T>(p_, w_, n, z);
      signs_of<T>(positives_[n], y);
      slack_[n] = T(1) - y * z;
    }
    ++sweeps_;
  }

  // Puts the negative gradient into residual_, and finds which buckets are not solved yet.
  bool within_tolerance() {
    const T twice = 2 * p_.C;
    Lanes<T> y;
    for (int64_t f = 0; f < size_; ++f) residual_[f] = -w_[f];
    for (int64_t n = 0; n < p_.N; ++n) {
      const Lanes<T> hinge = slack_[n] > T(0) ? slack_[n] : Lanes<T>{};
      if (!any<T>(hinge)) continue;
      signs_of<T>(positives_[n], y);
      svm_add_document<Isa, T>(p_, n, twice * hinge * y, residual_);
    }
    ++sweeps_;
    Sums square, width;
    sum_products(residual_, residual_, square);
    double largest = 0;
    for (int64_t j = 0; j < kSvmTile; ++j)
      if (live_[j] != 0 && !(square[j] <= largest)) largest = square[j];
    const double near = kNearEnough * p_.tolerance;
    if (largest > near * near && sweeps_ < 2 * p_.max_passes) return false;
    violation_ = 0;
    violations(width);
    for (int64_t j = 0; j < kSvmTile; ++j) {
      if (live_[j] == 0) continue;
      if (!(square[j] < kInfinity)) width[j] = kInfinity;
      if (width[j] > violation_) violation_ = width[j];
      if (width[j] <= p_.tolerance) live_[j] = 0;
    }
    return violation_ <= p_.tolerance;
  }

  // Of the dual at alpha = 2 C hinge, whose w is w_ + residual_.
  void violations(Sums& width) {
    Lanes<T> highest{}, lowest{}, y, z;
    for (int64_t n = 0; n < p_.N; ++n) {
      svm_scores<Isa, T>(p_, residual_, n, z);
      signs_of<T>(positives_[n], y);
      const Lanes<T> slack = slack_[n], moved = y * z, outside = moved - slack;
      Lanes<T> projected = slack > T(0) ? moved : (outside < T(0) ? outside : Lanes<T>{});
      projected *= p_.scales[n];
      highest = projected > highest ? projected : highest;
      lowest = projected < lowest ? projected : lowest;
    }
    ++sweeps_;
    width = __builtin_convertvector(highest, Sums) - __builtin_convertvector(lowest, Sums);
  }

  // H direction = residual, by conjugate gradients. A bucket that needs many steps is solved by a factor of
  // its own, from then on at once.
  void find_direction() {
    for (int64_t f = 0; f < size_; ++f) direction_[f] = Lanes<T>{};
    for (int64_t n = 0; n < p_.N; ++n) change_[n] = Lanes<T>{};
    precondition(residual_, search_);
    Sums size, curvature, before{};
    sum_products(residual_, search_, size);
    const Sums goal = size * (kForcing * kForcing);
    const int64_t last = kConjugateSteps + p_.D / kColumnsOfStep;
    for (int64_t i = 0; has_unsolved(size, goal) && sweeps_ < 2 * p_.max_passes; ++i) {
      if (i == last) {
        for (int64_t j = 0; j < kSvmTile; ++j)
          if (!(size[j] <= goal[j])) easy_[j] = 0;
        break;
      }
      if (i > 0) {
        const Lanes<T> kept = __builtin_convertvector(size / before, Lanes<T>);
        for (int64_t f = 0; f < size_; ++f) search_[f] = product_[f] + kept * search_[f];
      }
      multiply_by_hessian();
      sum_products(search_, product_, curvature);
      const Sums step = live_ * size / (curvature > kTiny ? curvature : Sums{} + kTiny);
      const Lanes<T> by = __builtin_convertvector(step, Lanes<T>);
      for (int64_t f = 0; f < size_; ++f) {
        direction_[f] += by * search_[f];
        residual_[f] -= by * product_[f];
      }
      for (int64_t n = 0; n < p_.N; ++n) change_[n] += by * change_of_search_[n];
      precondition(residual_, product_);
      before = size > kTiny ? size : Sums{} + kTiny;
      sum_products(residual_, product_, size);
    }
    solve_rest();
  }

  bool has_unsolved(const Sums& size, const Sums& goal) const {
    for (int64_t j = 0; j < kSvmTile; ++j)
      if (live_[j] != 0 && easy_[j] != 0 && !(size[j] <= goal[j])) return true;
    return false;
  }

  // Adds to direction_ what is left of the buckets that have a factor of their own.
  void solve_rest() {
    bool any = false;
    for (int64_t j = 0; j < kSvmTile; ++j) any |= live_[j] != 0 && easy_[j] == 0;
    if (!any) return;
    for (int64_t f = 0; f < size_; ++f) search_[f] = Lanes<T>{};
    for (int64_t j = 0; j < kSvmTile; ++j)
      if (live_[j] != 0 && easy_[j] == 0) solve_bucket(j);
    Lanes<T> y, z;
    for (int64_t n = 0; n < p_.N; ++n) {
      svm_scores<Isa, T>(p_, search_, n, z);
      signs_of<T>(positives_[n], y);
      change_[n] -= y * z;
    }
    for (int64_t f = 0; f < size_; ++f) direction_[f] += search_[f];
    ++sweeps_;
  }

  // search_ = H^-1 residual_ in lane j.
  void solve_bucket(int64_t j) {
    int64_t count = 0;
    for (int64_t n = 0; n < p_.N; ++n)
      if (slack_[n][j] > T(0)) scratch_.chosen[count++] = static_cast<int32_t>(n);
    const SvmFactor<T> active{p_.values, p_.indices, p_.indptr, scratch_.chosen, count, p_.D, p_.C};
    double* const factor = scratch_.hessian;
    svm_gram_rows<Isa>(active, 0, size_, scratch_.documents, factor);
    svm_cholesky<Isa, T>(size_, factor);
    double* const x = scratch_.documents;
    for (int64_t f = 0; f < size_; ++f) {
      const double* row = factor + f * size_;
      x[f] = (residual_[f][j] - dot<Isa>(row, x, f)) * row[f];
    }
    for (int64_t f = size_ - 1; f >= 0; --f) {
      const double* row = factor + f * size_;
      x[f] *= row[f];
      for (int64_t g = 0; g < f; ++g) x[g] -= row[g] * x[f];
      search_[f][j] = static_cast<T>(x[f]);
      x[f] = 0;
    }
  }

  void multiply_by_hessian() {
    const T twice = 2 * p_.C;
    for (int64_t f = 0; f < size_; ++f) product_[f] = search_[f];
    Lanes<T> y, z;
    for (int64_t n = 0; n < p_.N; ++n) {
      svm_scores<Isa, T>(p_, search_, n, z);
      signs_of<T>(positives_[n], y);
      change_of_search_[n] = -y * z;
      const Lanes<T> by = slack_[n] > T(0) ? twice * z : Lanes<T>{};
      if (any<T>(by)) svm_add_document<Isa, T>(p_, n, by, product_);
    }
    sweeps_ += 2;
  }

  // Newton's method for the derivative along the direction, which grows, within bounds.
  void line_search(Sums& length) {
    const T twice = 2 * p_.C;
    Sums along, square, low{}, high{};
    sum_products(w_, direction_, along);
    sum_products(direction_, direction_, square);
    length = live_;
    for (int64_t i = 0; i < kLineSteps; ++i) {
      const Lanes<T> at = __builtin_convertvector(length, Lanes<T>);
      Sums slope = along + length * square, curvature = square;
      for (int64_t n = 0; n < p_.N; ++n) {
        const Lanes<T> change = change_[n], moved = slack_[n] + at * change;
        const Lanes<T> hinge = moved > T(0) ? moved : Lanes<T>{};
        const Lanes<T> active = hinge > T(0) ? change : Lanes<T>{};
        slope += __builtin_convertvector(twice * hinge * active, Sums);
        curvature += __builtin_convertvector(twice * active * active, Sums);
      }
      bool done = true;
      for (int64_t j = 0; j < kSvmTile; ++j) {
        if (live_[j] == 0 || !(curvature[j] > 0)) continue;
        (slope[j] > 0 ? high : low)[j] = length[j];
        double next = length[j] - slope[j] / curvature[j];
        if (next < low[j] || (high[j] > 0 && next > high[j])) next = (low[j] + high[j]) / 2;
        const double moved = next > length[j] ? next - length[j] : length[j] - next;
        done &= moved <= kLineTolerance * length[j];
        length[j] = next;
      }
      if (done) break;
    }
  }

  // out = M^-1 in.
  void precondition(const Lanes<T>* in, Lanes<T>* out) const {
    for (int64_t f = 0; f < size_; ++f) {
      const T* row = factor_ + f * size_;
      Lanes<T> sum[4] = {in[f]};
      int64_t g = 0;
      for (; g + 4 <= f; g += 4)
        for (int64_t u = 0; u < 4; ++u) sum[u] -= row[g + u] * out[g + u];
      for (; g < f; ++g) sum[0] -= row[g] * out[g];
      out[f] = ((sum[0] + sum[1]) + (sum[2] + sum[3])) * row[f];
    }
    for (int64_t f = size_ - 1; f >= 0; --f) {
      const T* row = factor_ + f * size_;
      const Lanes<T> solved = out[f] *= row[f];
      for (int64_t g = 0; g < f; ++g) out[g] -= row[g] * solved;
    }
  }

  void sum_products(const Lanes<T>* x, const Lanes<T>* y, Sums& sum) const {
    sum = Sums{};
    for (int64_t f = 0; f < size_; ++f)
      sum += __builtin_convertvector(x[f], Sums) * __builtin_convertvector(y[f], Sums);
  }

  const BucketSvm<T>& p_;
  const T* factor_;
  const SvmNewtonScratch<T>& scratch_;
  int64_t size_;
  const uint16_t* positives_;
  Lanes<T>*w_, *residual_, *direction_, *search_, *product_, *slack_, *change_, *change_of_search_;
  Sums live_;                 // 1: not solved yet
  Sums easy_ = Sums{} + 1.0;  // 0: conjugate gradients need too many steps
  int64_t sweeps_ = 0;
  double violation_ = 0;
};

}  // namespace

template <class Isa, class T>
SvmResult bucket_svm_newton(const BucketSvm<T>& p, const T* factor, const SvmScratch<T>& s,
                            const SvmNewtonScratch<T>& newton) {
  return Newton<Isa, T>(p, factor, s, newton).solve();
}

#define MACH_BUCKET_SVM_NEWTON(ISA, T)                                                              \
  template SvmResult bucket_svm_newton<ISA, T>(const BucketSvm<T>&, const T*, const SvmScratch<T>&, \
                                               const SvmNewtonScratch<T>&);
MACH_INSTANTIATE_FLOATING(MACH_BUCKET_SVM_NEWTON)

}  // namespace mach
