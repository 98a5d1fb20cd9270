// CUDA twin of cpu/bucket_bce.h, the same formulas. In float32 the gradients and their column sums have the
// same bits. In float64 the exponential is the library's, whose last bits may differ.
//   loss[n] = sum_g ( sum_b softplus(Z[n, g, b]) - sum_{b in positives(n, g)} Z[n, g, b] ),  Z = logits +
//   bias
// and with `gradient` scale * (sigmoid(Z) - [b in positives(n, g)]) over the logits, or in bfloat16 into out.
// positives(n, g) is the set of buckets that hold a label of document n; a label outside [0, L), or with a
// bucket outside [0, B), makes the document's loss NaN. Row losses are sums in an order fixed by G and B: of
// four neighbours in T, the rest in float64.
//
// A first kernel takes tiles of rows and columns, and leaves a partial sum for each. A second kernel adds
// these up.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../cpu/numeric.h"
#include "csr.cuh"

namespace mach {

// Columns of a tile of the first kernel.
constexpr int64_t kBceColumns = 1024;

template <class T>
struct BucketBceParams {
  T* logits;      // [N, G, B], rows [B] contiguous
  const T* bias;  // [G, B], or null
  int64_t document_stride, repetition_stride;
  int64_t G, B;
  const int32_t* buckets;  // [G, L]
  int64_t L;
  const int64_t* label_indices;  // [label nnz]
  Rows labels;                   // label_indptr [N + 1]
  T scale;
  bool gradient;
  bf16* out;  // [N, G, B], or null: the gradient overwrites the logits
  int64_t out_document_stride, out_repetition_stride;
  double* partial_loss;  // [N, G * tiles]
  double* loss;          // [N]
  T* partial_columns;    // [ceil(N / kBceRows), G, B], where column sums are wanted
  T* grad_bias;          // [G, B], or null

  __host__ __device__ int64_t tiles() const { return (B + kBceColumns - 1) / kBceColumns; }
};
template <class T>
cudaError_t launch_bucket_bce(const BucketBceParams<T>& params, cudaStream_t stream);

}  // namespace mach
