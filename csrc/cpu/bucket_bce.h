// bucket_bce: binary cross-entropy of one repetition's bucket logits Z [N, B] against the set of buckets
// that hold a label of the document:  loss[n] = sum_b softplus(Z[n, b]) - sum_{b in positives(n)} Z[n, b].
//
// positives(n) is a set: two labels of a document in one bucket count once. With `gradient`, Z is
// overwritten by scale * (sigmoid(Z) - [b in positives(n)]), so that one chunk [N, B] is all that a step
// holds, whatever R is. Row losses are float64 sums in the order of the buckets.
#pragma once

#include <cstdint>

#include "isa.h"

namespace mach {

template <class T>
struct BucketBce {
  T* logits;  // [N, B], rows logits_stride apart
  int64_t logits_stride, B;
  const int32_t* buckets;  // [L], this repetition's
  int64_t L;
  const int64_t* label_indices;  // [label nnz]
  const int64_t* label_indptr;   // [N + 1]
  T scale;
  bool gradient;
};

// Scratch of the calling thread: seen [B], -1 everywhere at first; positive [B]. A label outside [0, L), or
// with a bucket outside [0, B), makes its document's loss NaN and is passed over in the gradient.
template <class Isa, class T>
void bucket_bce(const BucketBce<T>& p, double* loss, int64_t* seen, T* positive, int64_t row_begin,
                int64_t row_end);

}  // namespace mach
