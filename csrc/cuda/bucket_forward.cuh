// The bucket logits of a group of G repetitions and what is made of them, in one launch:
//   z[n, g, b] = sum_h hidden[n, g, h] weight[g, h, b] + bias[g, b]
// hidden and weight are bfloat16, products are exact in float and summed in float on tensor cores (mma.cuh),
// the bias is added last. Logits never reach memory. Two epilogues:
//   scores   prediction: transform(z) [N, G, B] float; on demand what the decode needs of each tile
//   bce      training: the loss of bucket_bce.cuh summed over the group, its gradient in bfloat16, and the
//            gradient's sums over the documents
// H is a multiple of 8, rows are aligned to 16 bytes.
//
// bce: positives(n, g) is the set of buckets of repetition g that hold a label of document n.
//   loss[n] = sum_g sum_b softplus(z) - sum_{b in positives(n, g)} z
//   gradient[n, g, b] = scale * (sigmoid(z) - [b in positives(n, g)]), rounded to bfloat16
//   grad_bias[g, b] = sum_n of the same before the rounding
// Formulas and faulty labels as in bucket_bce.cuh. All sums have an order that the shapes fix.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../transform.h"
#include "csr.cuh"
#include "merge_extremes.cuh"

namespace mach {

// Whether the current device has what the kernels need: compute capability 8.0.
bool has_bf16_mma();

constexpr int kForwardDocuments = 128, kForwardBuckets = 256;  // a block's tile of logits

struct BucketForwardParams {
  const bf16* hidden;  // [N, G, H]: element (n, g, h) at n document_stride + g repetition_stride + h
  int64_t document_stride, repetition_stride;  // repetition_stride 0: shared
  const bf16* weight;                          // [G, B, H]
  const float* bias;                           // [G, B] or null
  int64_t N, G, H, B;

  __host__ __device__ int64_t document_tiles() const {
    return (N + kForwardDocuments - 1) / kForwardDocuments;
  }
  __host__ __device__ int64_t bucket_tiles() const { return (B + kForwardBuckets - 1) / kForwardBuckets; }
};

struct BucketScoresParams {
  BucketForwardParams forward;
  Transform transform;
  float* scores;       // [N, G, B]
  TileExtremes tiles;  // written, where not null
};
cudaError_t launch_bucket_forward(const BucketScoresParams& params, cudaStream_t stream);

struct BucketForwardBceParams {
  BucketForwardParams forward;
  const int32_t* buckets;  // [G, L]
  int64_t L;
  const int64_t* label_indices;  // [label nnz]
  Rows labels;                   // label_indptr [N + 1]
  float scale;
  uint16_t* gradient;      // [N, G, B] bfloat16
  double* loss;            // [N]
  float* grad_bias;        // [G, B]
  double* document_parts;  // scratch [G, bucket_tiles, N]: losses of each tile
  float* bucket_parts;     // scratch [document_tiles, G, B]: sums of each tile
};
cudaError_t launch_bucket_forward_bce(const BucketForwardBceParams& params, cudaStream_t stream);

}  // namespace mach
