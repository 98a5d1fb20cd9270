#include "bucket_backward.h"

#ifdef MACH_ISA_IS_Avx512
#include <immintrin.h>
#endif

#include "numeric.h"

namespace mach {
namespace {

constexpr int64_t kWidth = kTile<MACH_ISA>;

// The hidden units of a tile.
template <class T>
using Hidden = Vector<T, kWidth>;

template <class T>
inline bool is_negligible(T g, T limit) {
  return g >= 0 && g < limit;
}

// out[j, i] = in[i, j] of a kWidth x kWidth block: in rows in_stride, out rows out_stride apart.
template <class T>
inline void transpose(const T* in, int64_t in_stride, T* out, int64_t out_stride, int64_t rows,
                      int64_t columns) {
#ifdef MACH_ISA_IS_Avx512
  // Four perfect shuffles of the rows: each puts row i's elements between those of row i + 8.
  if (rows == kWidth && columns == kWidth) {
    using Mask = int32_t __attribute__((vector_size(kWidth * sizeof(int32_t))));
    const Mask low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
    const Mask high = low + 8;
    Hidden<T> a[kWidth], b[kWidth];
#pragma GCC unroll 16
    for (int64_t i = 0; i < kWidth; ++i) a[i] = *reinterpret_cast<const Hidden<T>*>(in + i * in_stride);
#pragma GCC unroll 4
    for (int stage = 0; stage < 4; ++stage) {
#pragma GCC unroll 8
      for (int64_t i = 0; i < kWidth / 2; ++i) {
        b[2 * i] = __builtin_shuffle(a[i], a[i + kWidth / 2], low);
        b[2 * i + 1] = __builtin_shuffle(a[i], a[i + kWidth / 2], high);
      }
#pragma GCC unroll 16
      for (int64_t i = 0; i < kWidth; ++i) a[i] = b[i];
    }
#pragma GCC unroll 16
    for (int64_t i = 0; i < kWidth; ++i) *reinterpret_cast<Hidden<T>*>(out + i * out_stride) = a[i];
    return;
  }
#endif
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) out[j * out_stride + i] = in[i * in_stride + j];
}

// The buckets of g [B] that are not negligible, ascending, into kept [B]; returns how many.
template <class T>
inline int64_t kept_entries(const T* __restrict g, int64_t B, T limit, int32_t* __restrict kept) {
  int64_t found = 0, b = 0;
#ifdef MACH_ISA_IS_Avx512
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (; b + 16 <= B; b += 16) {
    const __m512 x = _mm512_loadu_ps(g + b);
    const __mmask16 negligible = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ) &
                                 _mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_LT_OQ);
    const __mmask16 mask = _knot_mask16(negligible);
    const __m512i bucket = _mm512_add_epi32(lane, _mm512_set1_epi32(static_cast<int32_t>(b)));
    // A whole register is written: found <= b, so it stays within kept.
    _mm512_storeu_si512(kept + found, _mm512_maskz_compress_epi32(mask, bucket));
    found += __builtin_popcount(mask);
  }
#endif
  for (; b < B; ++b) {
    kept[found] = static_cast<int32_t>(b);
    found += !is_negligible(g[b], limit);
  }
  return found;
}

// sum += value[e] * rows[index[e], :kWidth] over e in [begin, end). Entry e goes to sum e % 4, the four are
// added at the end: one alone would wait for its own additions.
template <class T>
inline void gather_sum(const T* value, const int32_t* index, const T* rows, int64_t begin, int64_t end,
                       Hidden<T>& sum) {
  const auto* row = reinterpret_cast<const Hidden<T>*>(rows);
  Hidden<T> s0 = {}, s1 = {}, s2 = {}, s3 = {};
  int64_t e = begin;
  for (; e + 4 <= end; e += 4) {
    s0 += value[e] * row[index[e]];
    s1 += value[e + 1] * row[index[e + 1]];
    s2 += value[e + 2] * row[index[e + 2]];
    s3 += value[e + 3] * row[index[e + 3]];
  }
  for (; e < end; ++e) s0 += value[e] * row[index[e]];
  sum += (s0 + s1) + (s2 + s3);
}

}  // namespace

template <class Isa, class T>
void negligible_columns(const BucketBackward<T>& p, T* __restrict column, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b) column[b] = 0;
  for (int64_t n = 0; n < p.N; ++n) {
    const T* __restrict g = p.gradient + n * p.B;
    for (int64_t b = begin; b < end; ++b) column[b] += is_negligible(g[b], p.negligible) ? g[b] : T(0);
  }
}

template <class Isa, class T>
void negligible_rows(const BucketBackward<T>& p, T* row, int32_t* kept, int64_t* count, int64_t begin,
                     int64_t end) {
  constexpr int64_t kLanes = 16;
  for (int64_t n = begin; n < end; ++n) {
    const T* __restrict g = p.gradient + n * p.B;
    T lane[kLanes] = {};
    int64_t b = 0;
    for (; b + kLanes <= p.B; b += kLanes)
      for (int64_t j = 0; j < kLanes; ++j) lane[j] += is_negligible(g[b + j], p.negligible) ? g[b + j] : T(0);
    for (int64_t j = 0; b < p.B; ++b, ++j) lane[j] += is_negligible(g[b], p.negligible) ? g[b] : T(0);
    T sum = 0;
    for (int64_t j = 0; j < kLanes; ++j) sum += lane[j];
    row[n] = sum;
    count[n] = kept_entries(g, p.B, p.negligible, kept + n * p.B);
  }
}

template <class Isa, class T>
void split_gradient(const BucketBackward<T>& p, const int32_t* kept, const SplitGradient<T>& s) {
  for (int64_t b = 0; b <= p.B; ++b) s.bucket_offset[b] = 0;
  for (int64_t n = 0; n < p.N; ++n) {
    const int64_t begin = s.document_offset[n], count = s.document_offset[n + 1] - begin;
    for (int64_t i = 0; i < count; ++i) {
      const int32_t b = kept[n * p.B + i];
      s.bucket[begin + i] = b;
      s.by_document[begin + i] = p.gradient[n * p.B + b] - s.row[n] * s.column[b];
      ++s.bucket_offset[b + 1];
    }
  }
  for (int64_t b = 0; b < p.B; ++b) s.bucket_offset[b + 1] += s.bucket_offset[b];
  // bucket_offset[b] is where bucket b's next entry goes, so in the end where bucket b + 1 starts.
  for (int64_t n = 0; n < p.N; ++n)
    for (int64_t e = s.document_offset[n]; e < s.document_offset[n + 1]; ++e) {
      const int64_t at = s.bucket_offset[s.bucket[e]]++;
      s.document[at] = static_cast<int32_t>(n);
      s.by_bucket[at] = s.by_document[e];
    }
  for (int64_t b = p.B; b > 0; --b) s.bucket_offset[b] = s.bucket_offset[b - 1];
  s.bucket_offset[0] = 0;
}

template <class Isa, class T>
void bucket_backward(const BucketBackward<T>& p, const SplitGradient<T>& s, T* scratch, int64_t begin,
                     int64_t end) {
  T *hidden = scratch, *weight = scratch + p.N * kWidth;  // this tile's [N, kWidth], [B, kWidth]
  auto* hidden_row = reinterpret_cast<Hidden<T>*>(hidden);
  auto* weight_row = reinterpret_cast<Hidden<T>*>(weight);
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile * kWidth, width = p.H - first < kWidth ? p.H - first : kWidth;
    if (width < kWidth)
      for (int64_t i = 0; i < (p.N + p.B) * kWidth; ++i) scratch[i] = 0;
    Hidden<T> hidden_sum = {}, weight_sum = {};  // the rank-one matrix's part: row hidden, weight column
    for (int64_t n = 0; n < p.N; ++n) {
      for (int64_t i = 0; i < width; ++i) hidden[n * kWidth + i] = p.hidden[n * p.hidden_stride + first + i];
      hidden_sum += s.row[n] * hidden_row[n];
    }
    for (int64_t b = 0; b < p.B; b += kWidth) {
      const int64_t count = p.B - b < kWidth ? p.B - b : kWidth;
      transpose(p.weight + first * p.B + b, p.B, weight + b * kWidth, kWidth, width, count);
      for (int64_t i = b; i < b + count; ++i) weight_sum += s.column[i] * weight_row[i];
    }
    for (int64_t n = 0; n < p.N; ++n) {
      Hidden<T> sum = s.row[n] * weight_sum;
      gather_sum<T>(s.by_document, s.bucket, weight, s.document_offset[n], s.document_offset[n + 1], sum);
      T* out = p.grad_hidden + n * p.grad_hidden_stride + first;
      for (int64_t i = 0; i < width; ++i) out[i] += sum[i];
    }
    for (int64_t b = 0; b < p.B; b += kWidth) {
      const int64_t count = p.B - b < kWidth ? p.B - b : kWidth;
      T block[kWidth * kWidth];
      for (int64_t i = 0; i < count; ++i) {
        Hidden<T> sum = s.column[b + i] * hidden_sum;
        gather_sum<T>(s.by_bucket, s.document, hidden, s.bucket_offset[b + i], s.bucket_offset[b + i + 1],
                      sum);
        reinterpret_cast<Hidden<T>*>(block)[i] = sum;
      }
      transpose(block, kWidth, p.grad_weight + first * p.B + b, p.B, count, width);
    }
  }
}

#define MACH_BUCKET_BACKWARD(ISA, T)                                                                         \
  template void negligible_columns<ISA, T>(const BucketBackward<T>&, T*, int64_t, int64_t);                  \
  template void negligible_rows<ISA, T>(const BucketBackward<T>&, T*, int32_t*, int64_t*, int64_t, int64_t); \
  template void split_gradient<ISA, T>(const BucketBackward<T>&, const int32_t*, const SplitGradient<T>&);   \
  template void bucket_backward<ISA, T>(const BucketBackward<T>&, const SplitGradient<T>&, T*, int64_t,      \
                                        int64_t);
MACH_INSTANTIATE_FLOATING(MACH_BUCKET_BACKWARD)

}  // namespace mach
