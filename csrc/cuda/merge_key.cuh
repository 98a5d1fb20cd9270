// A label's exact key and what orders it, for the kernels that merge. Same bits as cpu/merge_scores.cpp and
// cpu/topk.h: sums in the order of the repetitions, one IEEE division, no contraction (--fmad=false).
#pragma once

#include <type_traits>

#include "device.cuh"
#include "merge_scores.cuh"

namespace mach {

// Scores of one label in one document.
template <class T>
struct LabelScores {
  const T* scores;
  int64_t repetition_stride;
  const int32_t* bucket;  // buckets + label
  int64_t L;
  uint32_t B;
  __device__ T operator[](int64_t r) const { return score(scores + r * repetition_stride, bucket[r * L]); }
  // Of a repetition; NaN where the bucket is not there.
  __device__ T score(const T* repetition, int32_t b) const {
    return static_cast<uint32_t>(b) < B ? repetition[b] : static_cast<T>(__int_as_float(0x7fc00000));
  }
};

template <class T>
__device__ inline LabelScores<T> label_scores(const MergeInput<T>& p, int64_t document, int64_t label) {
  return {p.scores + document * p.document_stride, p.repetition_stride, p.buckets + label, p.L,
          static_cast<uint32_t>(p.B)};
}

template <class T>
__device__ inline T key_mean(LabelScores<T> s, int R) {
  T sum = s.score(s.scores, *s.bucket);
#pragma unroll 8
  for (int r = 1; r < R; ++r) {  // loads of several repetitions are under way together
    s.scores += s.repetition_stride;
    s.bucket += s.L;
    sum += s.score(s.scores, *s.bucket);
  }
  return sum / static_cast<T>(R);
}

template <class T>
__device__ inline T key_min(const LabelScores<T>& s, int R) {
  T least = s[0];
  for (int r = 1; r < R; ++r) {
    const T x = s[r];
    if (x < least || (x != x && least == least)) least = x;
  }
  return least;
}

// Places in the stable order by counting, R^2 / 2 loads: no memory of R values a thread.
template <class T>
__device__ inline T key_median(const LabelScores<T>& s, int R) {
  T lower = 0, upper = 0;
  for (int r = 0; r < R; ++r) {
    const T x = s[r];
    if (x != x) return x;
    int place = 0;
    for (int q = 0; q < R; ++q) {
      const T y = s[q];
      place += q < r ? y <= x : y < x;
    }
    if (place == R / 2 - 1) lower = x;
    if (place == R / 2) upper = x;
  }
  return R % 2 ? upper : (lower + upper) / T(2);
}

template <class T>
__device__ inline T merge_key(const MergeInput<T>& p, int64_t document, int64_t label) {
  const LabelScores<T> s = label_scores(p, document, label);
  const int R = static_cast<int>(p.R);
  if (p.merge == Merge::mean) return key_mean(s, R);
  return p.merge == Merge::min ? key_min(s, R) : key_median(s, R);
}

// The labels of a bucket, within the repetition's [0, L) whatever the starts say: users can write to them, as
// to the labels themselves, which are checked where they are used.
struct List {
  uint32_t first, count;
};
__device__ inline List list_of(const int32_t* starts, int64_t L) {
  const auto end = static_cast<int>(L);
  const int first = starts[0] < 0 ? 0 : starts[0] < end ? starts[0] : end;
  const int last = starts[1] < first ? first : starts[1] < end ? starts[1] : end;
  return {static_cast<uint32_t>(first), static_cast<uint32_t>(last - first)};
}

template <class T>
using Rank = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

// An unsigned integer that orders like the key: 0 for NaN, then -inf ... +inf; -0 equals +0.
__device__ inline uint32_t rank_of(float key) {
  if (key != key) return 0;
  const uint32_t bits = __float_as_uint(key == 0 ? 0.0f : key);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ inline uint64_t rank_of(double key) {
  if (key != key) return 0;
  const uint64_t bits = static_cast<uint64_t>(__double_as_longlong(key == 0 ? 0.0 : key));
  return bits >> 63 ? ~bits : bits | 0x8000000000000000u;
}

// A key of that rank; NaN for the ranks below that of -inf.
__device__ inline float key_of(uint32_t rank) {
  return __uint_as_float(rank >> 31 ? rank & 0x7fffffffu : ~rank);
}
__device__ inline double key_of(uint64_t rank) {
  return __longlong_as_double(static_cast<long long>(rank >> 63 ? rank & 0x7fffffffffffffffu : ~rank));
}

// What a label's exact sum of scores may lack of R theta when its fp32 key reaches theta. u = 2^-24: the fp32
// sum errs by at most (R - 1) u / (1 - ...) times the sum of the magnitudes, the division by one more
// rounding. For a sum s of scores that are at most `high` the magnitudes add up to 2 * (sum of the positive
// ones) - s. The factor 4 is more than enough for second-order terms, the last term for results below the
// least normal number.
__device__ inline double slack(int R, double theta, double slack_high) {
  return (R + 4) * 2.384185791015625e-7 * (2 * slack_high + R * fabs(theta)) + R * 1e-44;
}

// Whether that, and other bounds by sums of scores, hold: sums of the greatest scores and of the positive
// ones among them. No NaN, no +inf, no repetition of -inf, no sum that could overflow.
__device__ inline bool sums_hold(double sum_high, double slack_high) {
  return fabs(sum_high) < 1e37 && slack_high < 1e30;
}

}  // namespace mach
