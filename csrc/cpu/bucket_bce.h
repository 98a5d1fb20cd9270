// bucket_bce: binary cross-entropy of a group of G repetitions, whose bucket logits are Z + bias [N, G, B],
// against the sets of buckets that hold a label of the document:
//
//   loss[n] = sum_g ( sum_b softplus(Z[n, g, b]) - sum_{b in positives(n, g)} Z[n, g, b] ).
//
// positives(n, g) is a set: two labels of a document in one bucket count once. The gradient is
// scale * (sigmoid(Z) - [b in positives(n, g)]). It overwrites Z, or it is written to `out` in bfloat16, so
// that a step holds the logits of one group, whatever R is. Its column sums are taken before it is rounded.
// Row losses are float64 sums in the order of the buckets, then of the repetitions.
#pragma once

#include <cstdint>

#include "isa.h"
#include "numeric.h"

namespace mach {

template <class T>
struct BucketBce {
  T* logits;      // [N, G, B], rows [B] contiguous
  const T* bias;  // [G, B], or null
  int64_t document_stride, repetition_stride;
  int64_t N, B;
  const int32_t* buckets;  // [G, L]
  int64_t L;
  const int64_t* label_indices;  // [label nnz]
  const int64_t* label_indptr;   // [N + 1]
  T scale;
  bool gradient;
  bf16* out;  // [N, G, B] as the logits, or null: the gradient overwrites them
  int64_t out_document_stride, out_repetition_stride;
};

// Scratch of the calling thread. A mark says which document's positive a bucket was last, so marks stay valid
// from call to call.
template <class T>
struct BucketBceScratch {
  int64_t* mark;  // [B], -1 everywhere at first
  T* positive;    // [B] logits of the positives
  T* row;         // [B] a row of the gradient before it is rounded; only for `out`
};

// Rows [begin, end) of repetition g: loss[n], and their column sums into column [B] (null: none wanted).
// A label outside [0, L), or with a bucket outside [0, B), makes its document's loss NaN and is passed over
// in the gradient.
template <class Isa, class T>
void bucket_bce(const BucketBce<T>& p, int64_t g, const BucketBceScratch<T>& scratch, double* loss, T* column,
                int64_t begin, int64_t end);

// sum[b] over the blocks partial[block * stride + b], in the order of kBceRows; columns [begin, end).
template <class Isa, class T>
void sum_columns(const T* partial, int64_t blocks, int64_t stride, T* sum, int64_t begin, int64_t end);

}  // namespace mach
