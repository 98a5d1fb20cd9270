// CUDA twin of cpu/bucket_bce.h, the same formulas. Gradients of float32 logits have the CPU's bits. With
// float64 the exponential is the library's, whose last bits may differ.
//   loss[n] = sum_b softplus(Z[n, b]) - sum_{b in positives(n)} Z[n, b]
// and with `gradient` Z = scale * (sigmoid(Z) - [b in positives(n)]). positives(n) is the set of buckets that
// hold a label of document n; a label outside [0, L), or with a bucket outside [0, B), makes the document's
// loss NaN. Row losses are sums in an order fixed by B: of four neighbours in T, the rest in float64.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "csr.cuh"

namespace mach {

template <class T>
struct BucketBceParams {
  T* logits;  // [N, B], rows logits_stride apart
  int64_t logits_stride, B;
  const int32_t* buckets;  // [L], this repetition's
  int64_t L;
  const int64_t* label_indices;  // [label nnz]
  Rows labels;                   // label_indptr [N + 1]
  T scale;
  bool gradient;
  double* loss;  // [N]
};
template <class T>
cudaError_t launch_bucket_bce(const BucketBceParams<T>& params, cudaStream_t stream);

}  // namespace mach
