#include "bucket_bce.h"

namespace mach {
namespace {

constexpr int64_t kBlock = 64, kLanes = 16;

// kBlock logits x as if all were negative: adds softplus(x) to lane[bucket % kLanes]; with kGradient, out
// becomes scale sigmoid(x).
template <class Isa, bool kGradient, class T>
inline void negatives_block(const T* __restrict x, T scale, double* __restrict lane, T* __restrict out) {
  alignas(64) T term[kBlock];
  alignas(64) T e[kBlock], inverse[kBlock];
  for (int64_t i = 0; i < kBlock; ++i) e[i] = exp_nonpositive<Isa>(x[i] < 0 ? x[i] : -x[i]);
  for (int64_t i = 0; i < kBlock; ++i) log1p_and_inverse<Isa>(e[i], term[i], inverse[i]);
  for (int64_t i = 0; i < kBlock; ++i) {
    term[i] += x[i] < 0 ? T(0) : x[i];
    if (kGradient) out[i] = scale * ((x[i] < 0 ? e[i] : T(1)) * inverse[i]);
  }
  for (int64_t i = 0; i < kBlock; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j) lane[j] += static_cast<double>(term[i + j]);
}

// Buckets [0, B): returns sum softplus(z + bias). Lane i sums the buckets i, i + 16, ..., then the lanes are
// summed in order. With a single lane, each addition would wait for the one before. out may be z itself.
template <class Isa, bool kGradient, class T>
double negatives(const T* z, const T* bias, int64_t B, T scale, T* out) {
  alignas(64) double lane[kLanes] = {};
  alignas(64) T x[kBlock];
  int64_t b = 0;
  for (; b + kBlock <= B; b += kBlock) {
    if (bias)
      for (int64_t i = 0; i < kBlock; ++i) x[i] = z[b + i] + bias[b + i];
    else
      for (int64_t i = 0; i < kBlock; ++i) x[i] = z[b + i];
    negatives_block<Isa, kGradient>(x, scale, lane, out + b);
  }
  if (b < B) {
    alignas(64) T rest[kBlock];
    for (int64_t i = 0; i < kBlock; ++i) x[i] = T(-1e4);  // softplus(-1e4) = 0
    for (int64_t i = 0; b + i < B; ++i) x[i] = z[b + i];
    if (bias)
      for (int64_t i = 0; b + i < B; ++i) x[i] += bias[b + i];
    negatives_block<Isa, kGradient>(x, scale, lane, rest);
    if (kGradient)
      for (int64_t i = 0; b + i < B; ++i) out[b + i] = rest[i];
  }
  double sum = 0;
  for (int64_t j = 0; j < kLanes; ++j) sum += lane[j];
  return sum;
}

// Bucket of a label; -1 where the label, or what the table says, is out of range.
template <class T>
inline int64_t bucket_of(const BucketBce<T>& p, const int32_t* buckets, int64_t label) {
  if (label < 0 || label >= p.L) return -1;
  const int64_t b = buckets[label];
  return b >= 0 && b < p.B ? b : -1;
}

// The loss of a row z, and with `gradient` its gradient into out, which may be z.
template <class Isa, class T>
inline double row_loss(const BucketBce<T>& p, int64_t g, int64_t n, const BucketBceScratch<T>& s, const T* z,
                       T* out) {
  const int32_t* buckets = p.buckets + g * p.L;
  const T* bias = p.bias ? p.bias + g * p.B : nullptr;
  const int64_t begin = p.label_indptr[n], end = p.label_indptr[n + 1], mark = g * p.N + n;
  double sum = 0;
  // The positives' logits first: the pass over all buckets overwrites them.
  for (int64_t e = begin; e < end; ++e) {
    const int64_t b = bucket_of(p, buckets, p.label_indices[e]);
    if (b < 0) {
      sum = __builtin_nan("");
      continue;
    }
    if (s.mark[b] == mark) continue;
    s.mark[b] = mark;
    s.positive[b] = bias ? z[b] + bias[b] : z[b];
  }
  sum += p.gradient ? negatives<Isa, true>(z, bias, p.B, p.scale, out)
                    : negatives<Isa, false>(z, bias, p.B, p.scale, out);
  for (int64_t e = begin; e < end; ++e) {
    const int64_t b = bucket_of(p, buckets, p.label_indices[e]);
    if (b < 0 || s.mark[b] != mark) continue;
    s.mark[b] = -2 - mark;  // done: another label in this bucket counts nothing
    // softplus(-x) in place of softplus(x): not by subtracting x, which would cancel where x is large.
    const T x = s.positive[b];
    T counted, wanted, sigmoid;
    logistic<Isa>(x, counted, sigmoid);
    logistic<Isa>(-x, wanted, sigmoid);
    sum += static_cast<double>(wanted) - static_cast<double>(counted);
    if (p.gradient) out[b] = -p.scale * sigmoid;  // sigmoid(x) - 1 = -sigmoid(-x)
  }
  return sum;
}

}  // namespace

template <class Isa, class T>
void bucket_bce(const BucketBce<T>& p, int64_t g, const BucketBceScratch<T>& scratch, double* loss,
                T* __restrict column, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) {
    T* z = p.logits + n * p.document_stride + g * p.repetition_stride;
    T* row = p.out ? scratch.row : z;
    loss[n] = row_loss<Isa>(p, g, n, scratch, z, row);
    if (column && n == begin)
      for (int64_t b = 0; b < p.B; ++b) column[b] = T(0) + row[b];  // not -0
    else if (column)
      for (int64_t b = 0; b < p.B; ++b) column[b] += row[b];
    if (p.out) {
      bf16* out = p.out + n * p.out_document_stride + g * p.out_repetition_stride;
      for (int64_t b = 0; b < p.B; ++b) out[b] = round_to_bf16(static_cast<float>(row[b]));
    }
  }
}

template <class Isa, class T>
void sum_columns(const T* partial, int64_t blocks, int64_t stride, T* __restrict sum, int64_t begin,
                 int64_t end) {
  const int64_t sums = blocks < kBceSums ? blocks : kBceSums;
  T next[kBlock];
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t count = end - first < kBlock ? end - first : kBlock;
    for (int64_t i = 0; i < count; ++i) sum[first + i] = 0;
    for (int64_t at = 0; at < sums; ++at) {
      for (int64_t i = 0; i < count; ++i) next[i] = 0;
      for (int64_t block = at; block < blocks; block += kBceSums)
        for (int64_t i = 0; i < count; ++i) next[i] += partial[block * stride + first + i];
      for (int64_t i = 0; i < count; ++i) sum[first + i] += next[i];
    }
  }
}

#define MACH_BUCKET_BCE(ISA, T)                                                                           \
  template void bucket_bce<ISA, T>(const BucketBce<T>&, int64_t, const BucketBceScratch<T>&, double*, T*, \
                                   int64_t, int64_t);                                                     \
  template void sum_columns<ISA, T>(const T*, int64_t, int64_t, T*, int64_t, int64_t);
MACH_INSTANTIATE_FLOATING(MACH_BUCKET_BCE)

}  // namespace mach
