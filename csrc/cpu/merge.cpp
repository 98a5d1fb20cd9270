#include "merge.h"

namespace mach {
namespace {

template <class T>
inline bool is_nan(T x) {
  return x != x;
}

// Scores of one label in one document.
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

template <class T, class Scores>
inline T key_mean(const Scores& s, int64_t R) {
  T sum = s[0];
  for (int64_t r = 1; r < R; ++r) sum += s[r];
  return sum / static_cast<T>(R);
}

template <class T, class Scores>
inline T key_min(const Scores& s, int64_t R) {
  T least = s[0];
  for (int64_t r = 1; r < R; ++r) {
    const T x = s[r];
    if (x < least || (is_nan(x) && !is_nan(least))) least = x;
  }
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

}  // namespace

template <class Isa, class T>
void merge_labels(const MergeScores<T>& p, int64_t document, int64_t label_begin, int64_t count,
                  T* __restrict keys, T* sorted) {
  const T* scores = p.scores + document * p.document_stride;
  if (p.merge == Merge::mean) {
    // Repetition by repetition: independent additions, so the loads of many labels overlap.
    // Where most of the next one's scores will be asked for, in random order, they are fetched in theirs.
    constexpr int64_t kSome = 512, kLine = 64 / sizeof(T);
    const bool fetch = count >= p.B && p.R * p.B * static_cast<int64_t>(sizeof(T)) > (1 << 20);
    for (int64_t r = 0; r < p.R; ++r) {
      const T* table = scores + r * p.repetition_stride;
      const int32_t* bucket = p.buckets + r * p.L + label_begin;
      for (int64_t begin = 0; begin < count; begin += kSome) {
        const int64_t end = begin + kSome < count ? begin + kSome : count;
        if (fetch && r + 1 < p.R)
          for (int64_t b = p.B * begin / count; b < p.B * end / count; b += kLine)
            __builtin_prefetch(table + p.repetition_stride + b);
        if (r == 0)
          for (int64_t i = begin; i < end; ++i) keys[i] = table[bucket[i]];
        else
          for (int64_t i = begin; i < end; ++i) keys[i] += table[bucket[i]];
      }
    }
    const T divisor = static_cast<T>(p.R);
    for (int64_t i = 0; i < count; ++i) keys[i] /= divisor;
  } else {
    for (int64_t i = 0; i < count; ++i)
      keys[i] = key<T>(Label<T>{scores, p.repetition_stride, p.buckets + label_begin + i, p.L}, p.R, p.merge,
                       sorted);
  }
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
  for (int64_t i = 0; i < count && i < kScoresAhead; ++i) prefetch_scores(i);
  for (int64_t i = 0; i < count; ++i) {
    if (i + kCodesAhead < count) __builtin_prefetch(codes + labels[i + kCodesAhead] * p.R);
    if (i + kScoresAhead < count) prefetch_scores(i + kScoresAhead);
    keys[i] = key<T>(CodedLabel<T>{p.scores + documents[i] * p.document_stride, p.repetition_stride,
                                   codes + labels[i] * p.R},
                     p.R, p.merge, sorted);
  }
}

template <class Isa, class T>
void merge_scores(const MergeScores<T>& p, const int64_t* labels, int64_t m, T* out, T* sorted,
                  int64_t row_begin, int64_t row_end) {
  for (int64_t n = row_begin; n < row_end; ++n)
    for (int64_t j = 0; j < m; ++j) {
      const int64_t label = labels[n * m + j];
      const Label<T> s{p.scores + n * p.document_stride, p.repetition_stride, p.buckets + label, p.L};
      out[n * m + j] =
          label >= 0 && label < p.L ? key<T>(s, p.R, p.merge, sorted) : static_cast<T>(__builtin_nan(""));
    }
}

template <class Isa, class T>
void merge_scores_grad(const MergeScores<T>& p, const int64_t* labels, int64_t m, const T* grad,
                       T* grad_scores, int32_t* order, int64_t row_begin, int64_t row_end) {
  for (int64_t n = row_begin; n < row_end; ++n)
    for (int64_t j = 0; j < m; ++j) {
      const int64_t label = labels[n * m + j];
      if (label < 0 || label >= p.L) continue;
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
