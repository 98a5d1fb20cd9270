#include "bucket_bce.h"

#include "numeric.h"

namespace mach {
namespace {

// Buckets [0, B) as if all were negative: returns sum softplus(z); with kGradient, z becomes scale
// sigmoid(z).
template <class Isa, bool kGradient, class T>
double negatives(T* __restrict z, int64_t B, T scale) {
  constexpr int64_t kBlock = 64;
  T term[kBlock];
  double sum = 0;
  for (int64_t begin = 0; begin < B; begin += kBlock) {
    const int64_t count = B - begin < kBlock ? B - begin : kBlock;
    for (int64_t i = 0; i < count; ++i) {
      // With e = exp(-|z|) nothing overflows: softplus = max(z, 0) + log1p(e), sigmoid = 1/(1+e) or e/(1+e).
      const T x = z[begin + i];
      const T e = exp_nonpositive<Isa>(x < 0 ? x : -x);
      term[i] = (x < 0 ? T(0) : x) + log1p_unit<Isa>(e);
      if (kGradient) z[begin + i] = scale * ((x < 0 ? e : T(1)) / (T(1) + e));
    }
    for (int64_t i = 0; i < count; ++i) sum += term[i];
  }
  return sum;
}

}  // namespace

template <class Isa, class T>
void bucket_bce(const BucketBce<T>& p, double* loss, int64_t* seen, T* positive, int64_t row_begin,
                int64_t row_end) {
  for (int64_t n = row_begin; n < row_end; ++n) {
    T* z = p.logits + n * p.logits_stride;
    const int64_t begin = p.label_indptr[n], end = p.label_indptr[n + 1];
    double sum = 0;
    // The positives' logits first: the pass over all buckets overwrites them.
    for (int64_t e = begin; e < end; ++e) {
      const int64_t label = p.label_indices[e];
      if (label < 0 || label >= p.L) {
        sum = __builtin_nan("");
        continue;
      }
      const int32_t b = p.buckets[label];
      if (seen[b] == n) continue;
      seen[b] = n;
      positive[b] = z[b];
    }
    sum += p.gradient ? negatives<Isa, true>(z, p.B, p.scale) : negatives<Isa, false>(z, p.B, p.scale);
    for (int64_t e = begin; e < end; ++e) {
      const int64_t label = p.label_indices[e];
      if (label < 0 || label >= p.L) continue;
      const int32_t b = p.buckets[label];
      if (seen[b] != n) continue;
      seen[b] = -2 - n;  // done: another label in this bucket counts nothing
      // softplus(-x) in place of softplus(x): not by subtracting x, which would cancel where x is large.
      const T x = positive[b], a = exp_nonpositive<Isa>(x < 0 ? x : -x), l = log1p_unit<Isa>(a);
      const T counted = (x < 0 ? T(0) : x) + l, wanted = (x < 0 ? -x : T(0)) + l;
      sum += static_cast<double>(wanted) - static_cast<double>(counted);
      if (p.gradient) z[b] = -p.scale * ((x < 0 ? T(1) : a) / (T(1) + a));  // sigmoid(x) - 1 = -sigmoid(-x)
    }
    loss[n] = sum;
  }
}

#define MACH_BUCKET_BCE(ISA, T) \
  template void bucket_bce<ISA, T>(const BucketBce<T>&, double*, int64_t*, T*, int64_t, int64_t);
MACH_INSTANTIATE_FLOATING(MACH_BUCKET_BCE)

}  // namespace mach
