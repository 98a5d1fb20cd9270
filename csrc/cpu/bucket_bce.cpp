#include "bucket_bce.h"

#include "numeric.h"

namespace mach {
namespace {

constexpr int64_t kBlock = 64, kLanes = 16;

// kBlock buckets as if all were negative: adds softplus(z) to lane[bucket % kLanes]; with kGradient, z
// becomes scale sigmoid(z).
template <class Isa, bool kGradient, class T>
inline void negatives_block(T* __restrict z, T scale, double* __restrict lane) {
  alignas(64) T term[kBlock];
  alignas(64) T e[kBlock], inverse[kBlock];
  for (int64_t i = 0; i < kBlock; ++i) e[i] = exp_nonpositive<Isa>(z[i] < 0 ? z[i] : -z[i]);
  for (int64_t i = 0; i < kBlock; ++i) log1p_and_inverse<Isa>(e[i], term[i], inverse[i]);
  for (int64_t i = 0; i < kBlock; ++i) {
    term[i] += z[i] < 0 ? T(0) : z[i];
    if (kGradient) z[i] = scale * ((z[i] < 0 ? e[i] : T(1)) * inverse[i]);
  }
  for (int64_t i = 0; i < kBlock; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j) lane[j] += static_cast<double>(term[i + j]);
}

// Buckets [0, B): returns sum softplus(z). Lane i sums the buckets i, i + 16, ..., then the lanes are summed
// in order. With a single lane, each addition would wait for the one before.
template <class Isa, bool kGradient, class T>
double negatives(T* z, int64_t B, T scale) {
  alignas(64) double lane[kLanes] = {};
  int64_t b = 0;
  for (; b + kBlock <= B; b += kBlock) negatives_block<Isa, kGradient>(z + b, scale, lane);
  if (b < B) {
    alignas(64) T rest[kBlock];
    for (int64_t i = 0; i < kBlock; ++i) rest[i] = b + i < B ? z[b + i] : T(-1e4);  // softplus(-1e4) = 0
    negatives_block<Isa, kGradient>(rest, scale, lane);
    if (kGradient)
      for (int64_t i = 0; b + i < B; ++i) z[b + i] = rest[i];
  }
  double sum = 0;
  for (int64_t j = 0; j < kLanes; ++j) sum += lane[j];
  return sum;
}

// Bucket of a label; -1 where the label, or what the table says, is out of range.
template <class T>
inline int64_t bucket_of(const BucketBce<T>& p, int64_t label) {
  if (label < 0 || label >= p.L) return -1;
  const int64_t b = p.buckets[label];
  return b >= 0 && b < p.B ? b : -1;
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
      const int64_t b = bucket_of(p, p.label_indices[e]);
      if (b < 0) {
        sum = __builtin_nan("");
        continue;
      }
      if (seen[b] == n) continue;
      seen[b] = n;
      positive[b] = z[b];
    }
    sum += p.gradient ? negatives<Isa, true>(z, p.B, p.scale) : negatives<Isa, false>(z, p.B, p.scale);
    for (int64_t e = begin; e < end; ++e) {
      const int64_t b = bucket_of(p, p.label_indices[e]);
      if (b < 0 || seen[b] != n) continue;
      seen[b] = -2 - n;  // done: another label in this bucket counts nothing
      // softplus(-x) in place of softplus(x): not by subtracting x, which would cancel where x is large.
      const T x = positive[b];
      T counted, wanted, sigmoid;
      logistic<Isa>(x, counted, sigmoid);
      logistic<Isa>(-x, wanted, sigmoid);
      sum += static_cast<double>(wanted) - static_cast<double>(counted);
      if (p.gradient) z[b] = -p.scale * sigmoid;  // sigmoid(x) - 1 = -sigmoid(-x)
    }
    loss[n] = sum;
  }
}

#define MACH_BUCKET_BCE(ISA, T) \
  template void bucket_bce<ISA, T>(const BucketBce<T>&, double*, int64_t*, T*, int64_t, int64_t);
MACH_INSTANTIATE_FLOATING(MACH_BUCKET_BCE)

}  // namespace mach
