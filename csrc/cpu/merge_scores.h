// The merge: a label's key from its R bucket scores. One definition for merge_scores and merge_topk.
//
// Layout: scores of one document: repetition r at scores + r * repetition_stride, B contiguous values;
// buckets [R, L]. Keys are defined to the bit, in the scores' own type:
//   mean    (s_0 + s_1 + ... + s_{R-1}) / R, added in this order, one IEEE division
//   min     the least; NaN if any score is NaN; of equal ones (-0, +0) that of the lowest r
//   median  stable sort by value; the middle one, or (a + b) / 2 of the middle two; NaN if any is NaN
// A table of buckets, or its codes, can hold anything: users can write to it. A score at a bucket outside
// [0, B) is not read. It counts as NaN, so its label's key is NaN, and that label has no gradient.
#pragma once

#include <cstdint>

#include "../merge_kind.h"
#include "isa.h"

namespace mach {

template <class T>
struct MergeScores {
  const T* scores;
  int64_t document_stride, repetition_stride;
  const int32_t* buckets;  // [R, L]
  int64_t R, B, L;
  Merge merge;
};

// keys[i] = key of label label_begin + i, i < count, for one document. `sorted` is scratch of R values.
template <class Isa, class T>
void merge_labels(const MergeScores<T>& p, int64_t document, int64_t label_begin, int64_t count, T* keys,
                  T* sorted);

// keys[i] = key of (documents[i], labels[i]), i < count, from label-major codes [L, R].
template <class Isa, class T>
void merge_pairs(const MergeScores<T>& p, const uint16_t* codes, const int32_t* documents,
                 const int32_t* labels, int64_t count, T* keys, T* sorted);

// out[n, j] = key of labels[n, j]; a label outside [0, L) gets NaN, too. labels, out [N, m].
template <class Isa, class T>
void merge_scores(const MergeScores<T>& p, const int64_t* labels, int64_t m, T* out, T* sorted,
                  int64_t row_begin, int64_t row_end);

// grad_scores [N, R, B] contiguous, zero on entry, += the gradient of sum(grad * out). min and median pass
// it to the chosen repetition(s), the lowest r among equals; a NaN key passes it to the first NaN score.
// `order` is scratch of R entries.
template <class Isa, class T>
void merge_scores_grad(const MergeScores<T>& p, const int64_t* labels, int64_t m, const T* grad,
                       T* grad_scores, int32_t* order, int64_t row_begin, int64_t row_end);

}  // namespace mach
