#include "merge_scores.h"

#include <type_traits>

#include "codes.h"

namespace mach {
namespace {

template <class T>
inline bool is_nan(T x) {
  return x != x;
}

// Negative where not 0 <= bucket <= last.
inline int32_t outside(int32_t bucket, int32_t last) {
  return bucket | static_cast<int32_t>(static_cast<uint32_t>(last) - static_cast<uint32_t>(bucket));
}

template <class T>
inline int32_t last_bucket(const MergeScores<T>& p) {
  return static_cast<int32_t>(p.B < INT32_MAX ? p.B - 1 : INT32_MAX - 1);
}

// Scores of one label in one document, all of whose buckets are there.
template <class T>
struct Label {
  const T* scores;
  int64_t repetition_stride;
  const int32_t* bucket;  // buckets + label
  int64_t L;
  T operator[](int64_t r) const { return scores[r * repetition_stride + bucket[r * L]]; }
};

// The same from label-major codes.
template <class T>
struct CodedLabel {
  const T* scores;
  int64_t repetition_stride;
  const uint16_t* code;  // codes + label * R
  T operator[](int64_t r) const { return scores[r * repetition_stride + code[r]]; }
};

// Whether the label is there, and all of its buckets.
template <class T>
inline bool is_known(const MergeScores<T>& p, int64_t label) {
  if (label < 0 || label >= p.L) return false;
  const int32_t last = last_bucket(p);
  int32_t wrong = last;
  for (int64_t r = 0; r < p.R; ++r) wrong |= outside(p.buckets[r * p.L + label], last);
  return wrong >= 0;
}

// Whether labels [begin, end) have all of their buckets.
template <class T>
inline bool are_known(const MergeScores<T>& p, int64_t begin, int64_t end) {
  const int32_t last = last_bucket(p);
  int32_t wrong = last;
  for (int64_t r = 0; r < p.R; ++r)
    for (int64_t label = begin; label < end; ++label) wrong |= outside(p.buckets[r * p.L + label], last);
  return wrong >= 0;
}

template <class T>
inline T nan() {
  return static_cast<T>(__builtin_nan(""));
}

// Of two scores the one that min keeps, `least` if they are equal.
template <class T>
inline T lesser(T least, T x) {
  return x < least || (is_nan(x) && !is_nan(least)) ? x : least;
}

template <class T, class Scores>
inline T key_mean(const Scores& s, int64_t R) {
  T sum = s[0];
  for (int64_t r = 1; r < R; ++r) sum += s[r];
  return sum / static_cast<T>(R);
}

template <class T, class Scores>
inline T key_min(const Scores& s, int64_t R) {
  T least = s[0];
  for (int64_t r = 1; r < R; ++r) least = lesser(least, s[r]);
  return least;
}

template <class T, class Scores>
inline T key_median(const Scores& s, int64_t R, T* sorted) {
  for (int64_t r = 0; r < R; ++r) {  // stable insertion sort
    const T x = s[r];
    if (is_nan(x)) return x;
    int64_t i = r;
    for (; i > 0 && x < sorted[i - 1]; --i) sorted[i] = sorted[i - 1];
    sorted[i] = x;
  }
  return R % 2 ? sorted[R / 2] : (sorted[R / 2 - 1] + sorted[R / 2]) / T(2);
}

template <class T, class Scores>
inline T key(const Scores& s, int64_t R, Merge merge, T* sorted) {
  switch (merge) {
    case Merge::mean:
      return key_mean<T>(s, R);
    case Merge::min:
      return key_min<T>(s, R);
    default:
      return key_median<T>(s, R, sorted);
  }
}

// Scores of one label in one document, whatever its buckets: one that is not there reads the last bucket, and
// `greatest` says so.
template <class T>
struct CheckedLabel {
  const T* scores;
  int64_t repetition_stride;
  const int32_t* bucket;  // buckets + label
  int64_t L;
  uint32_t last;
  uint32_t& greatest;
  T operator[](int64_t r) const {
    const auto b = static_cast<uint32_t>(bucket[r * L]);
    greatest = b > greatest ? b : greatest;
    return scores[r * repetition_stride + (b < last ? b : last)];
  }
};

// A score where it is loaded: GCC would make vectors of scores that lie apart, and be slower by it.
template <class T>
inline T apart(T score) {
#if defined(__x86_64__)
  asm("" : "+x"(score));
#endif
  return score;
}

// keys[i] = fold(keys[i], score) with the scores of label first_label + i in repetitions r, ..., r + kCount -
// 1, for i in [begin, end). kStart: keys[i] starts as the score of r. A bucket that is not there reads bucket
// 0: false where there was one. (Not inlined: GCC would run out of registers for the pointers.)
template <bool kStart, int kCount, class T, class Fold>
__attribute__((noinline)) bool fold_scores(const MergeScores<T>& p, const T* scores, int64_t r,
                                           int64_t first_label, int64_t begin, int64_t end, const Fold& fold,
                                           T* __restrict keys) {
  const auto last = static_cast<uint32_t>(last_bucket(p));
  const T* table[kCount];
  const int32_t* bucket[kCount];
  for (int q = 0; q < kCount; ++q) {
    table[q] = scores + (r + q) * p.repetition_stride;
    bucket[q] = p.buckets + (r + q) * p.L + first_label;
  }
  bool known = true;
  for (int64_t i = begin; i < end; ++i) {
    T key = kStart ? T(0) : keys[i];
#pragma GCC unroll 4
    for (int q = 0; q < kCount; ++q) {
      auto b = static_cast<uint32_t>(bucket[q][i]);
      if (__builtin_expect(b > last, 0)) known = false, b = 0;
      const T score = table[q][b];
      key = apart(kStart && q == 0 ? score : fold(key, score));
    }
    keys[i] = key;
  }
  return known;
}

// All repetitions, a few at a time: the loads of many labels overlap, and few scores are gone through at
// once.
template <class T, class Fold>
inline bool fold_labels(const MergeScores<T>& p, const T* scores, int64_t first_label, int64_t count,
                        const Fold& fold, T* __restrict keys) {
  // Where most of the next ones' scores will be asked for, in random order, they are fetched in theirs.
  constexpr int64_t kSome = 512, kLine = 64 / sizeof(T), kNear = 128 << 10;
  const int64_t bytes = p.B * static_cast<int64_t>(sizeof(T)), most = bytes > kNear ? 2 : 4;
  const bool fetch = count >= p.B && p.R * bytes > (1 << 20);
  bool known = true;
  for (int64_t r = 0, step; r < p.R; r += step) {
    step = p.R - r >= most ? most : p.R - r >= 2 ? 2 : 1;
    for (int64_t begin = 0; begin < count; begin += kSome) {
      const int64_t end = begin + kSome < count ? begin + kSome : count;
      for (int64_t next = r + step; fetch && next < r + step + most && next < p.R; ++next)
        for (int64_t b = p.B * begin / count; b < p.B * end / count; b += kLine)
          __builtin_prefetch(scores + next * p.repetition_stride + b);
      const auto some = [&](auto start, auto repetitions) {
        return fold_scores<decltype(start)::value, decltype(repetitions)::value>(p, scores, r, first_label,
                                                                                 begin, end, fold, keys);
      };
      const auto from = [&](auto start) {
        return step == 4   ? some(start, std::integral_constant<int, 4>())
               : step == 2 ? some(start, std::integral_constant<int, 2>())
                           : some(start, std::integral_constant<int, 1>());
      };
      known &= r == 0 ? from(std::true_type()) : from(std::false_type());
    }
  }
  return known;
}

}  // namespace

template <class Isa, class T>
void merge_labels(const MergeScores<T>& p, int64_t document, int64_t label_begin, int64_t count,
                  T* __restrict keys, T* sorted) {
  const T* scores = p.scores + document * p.document_stride;
  bool known = true;
  if (p.merge == Merge::mean) {
    known = fold_labels(p, scores, label_begin, count, [](T sum, T x) { return sum + x; }, keys);
    const T divisor = static_cast<T>(p.R);
    for (int64_t i = 0; i < count; ++i) keys[i] /= divisor;
  } else if (p.merge == Merge::min) {
    known = fold_labels(p, scores, label_begin, count, [](T least, T x) { return lesser(least, x); }, keys);
  } else {
    known = are_known(p, label_begin, label_begin + count);
    for (int64_t i = 0; i < count; ++i) {
      const Label<T> s{scores, p.repetition_stride, p.buckets + label_begin + i, p.L};
      if (known || is_known(p, label_begin + i)) keys[i] = key_median<T>(s, p.R, sorted);
    }
  }
  for (int64_t i = 0; !known && i < count; ++i)
    if (!is_known(p, label_begin + i)) keys[i] = nan<T>();
}

template <class Isa, class T>
void merge_pairs(const MergeScores<T>& p, const uint16_t* codes, const int32_t* documents,
                 const int32_t* labels, int64_t count, T* keys, T* sorted) {
  // Labels are far apart, and so are their buckets: fetch the codes early and the scores a little later.
  constexpr int64_t kCodesAhead = 24, kScoresAhead = 6;
  const auto prefetch_scores = [&](int64_t i) {
    const T* scores = p.scores + documents[i] * p.document_stride;
    const uint16_t* code = codes + labels[i] * p.R;
    for (int64_t r = 0; r < p.R; ++r) __builtin_prefetch(scores + r * p.repetition_stride + code[r]);
  };
  const CodesBelow<Isa> known(p.R, p.B);
  for (int64_t i = 0; i < count && i < kScoresAhead; ++i) prefetch_scores(i);
  for (int64_t i = 0; i < count; ++i) {
    if (i + kCodesAhead < count) __builtin_prefetch(codes + labels[i + kCodesAhead] * p.R);
    if (i + kScoresAhead < count) prefetch_scores(i + kScoresAhead);
    const uint16_t* code = codes + labels[i] * p.R;
    keys[i] =
        known(code)
            ? key<T>(CodedLabel<T>{p.scores + documents[i] * p.document_stride, p.repetition_stride, code},
                     p.R, p.merge, sorted)
            : nan<T>();
  }
}

template <class Isa, class T>
void merge_scores(const MergeScores<T>& p, const int64_t* labels, int64_t m, T* out, T* sorted,
                  int64_t row_begin, int64_t row_end) {
  for (int64_t n = row_begin; n < row_end; ++n)
    for (int64_t j = 0; j < m; ++j) {
      const int64_t label = labels[n * m + j];
      out[n * m + j] = nan<T>();
      if (label < 0 || label >= p.L || p.B == 0) continue;
      const auto last = static_cast<uint32_t>(last_bucket(p));
      uint32_t greatest = 0;
      const CheckedLabel<T> s{
          p.scores + n * p.document_stride, p.repetition_stride, p.buckets + label, p.L, last, greatest};
      T value;
      if (p.merge == Merge::median) {  // read before they are sorted, so that the loads overlap
        for (int64_t r = 0; r < p.R; ++r) sorted[r] = s[r];
        value = key_median<T>(sorted, p.R, sorted);
      } else {
        value = p.merge == Merge::mean ? key_mean<T>(s, p.R) : key_min<T>(s, p.R);
      }
      if (greatest <= last) out[n * m + j] = value;
    }
}

template <class Isa, class T>
void merge_scores_grad(const MergeScores<T>& p, const int64_t* labels, int64_t m, const T* grad,
                       T* grad_scores, int32_t* order, int64_t row_begin, int64_t row_end) {
  for (int64_t n = row_begin; n < row_end; ++n)
    for (int64_t j = 0; j < m; ++j) {
      const int64_t label = labels[n * m + j];
      if (!is_known(p, label)) continue;
      const Label<T> s{p.scores + n * p.document_stride, p.repetition_stride, p.buckets + label, p.L};
      const T g = grad[n * m + j];
      const auto give = [&](int64_t r, T share) {
        grad_scores[(n * p.R + r) * p.B + p.buckets[r * p.L + label]] += share;
      };
      if (p.merge == Merge::mean) {
        for (int64_t r = 0; r < p.R; ++r) give(r, g / static_cast<T>(p.R));
        continue;
      }
      int64_t first_nan = -1;
      for (int64_t r = p.R - 1; r >= 0; --r)
        if (is_nan(s[r])) first_nan = r;
      if (first_nan >= 0) {
        give(first_nan, g);
        continue;
      }
      for (int64_t r = 0; r < p.R; ++r) {  // stable insertion sort of the repetitions by score
        int64_t i = r;
        for (; i > 0 && s[r] < s[order[i - 1]]; --i) order[i] = order[i - 1];
        order[i] = static_cast<int32_t>(r);
      }
      if (p.merge == Merge::min) {
        give(order[0], g);
      } else if (p.R % 2) {
        give(order[p.R / 2], g);
      } else {
        give(order[p.R / 2 - 1], g / T(2));
        give(order[p.R / 2], g / T(2));
      }
    }
}

#define MACH_MERGE(ISA, T)                                                                                  \
  template void merge_labels<ISA, T>(const MergeScores<T>&, int64_t, int64_t, int64_t, T*, T*);             \
  template void merge_pairs<ISA, T>(const MergeScores<T>&, const uint16_t*, const int32_t*, const int32_t*, \
                                    int64_t, T*, T*);                                                       \
  template void merge_scores<ISA, T>(const MergeScores<T>&, const int64_t*, int64_t, T*, T*, int64_t,       \
                                     int64_t);                                                              \
  template void merge_scores_grad<ISA, T>(const MergeScores<T>&, const int64_t*, int64_t, const T*, T*,     \
                                          int32_t*, int64_t, int64_t);
MACH_INSTANTIATE_FLOATING(MACH_MERGE)

}  // namespace mach
