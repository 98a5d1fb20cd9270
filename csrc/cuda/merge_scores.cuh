// CUDA twin of cpu/merge_scores.h: keys of labels from their R bucket scores, to the bit. Definition there,
// and what a bucket outside [0, B) means.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../merge_kind.h"

namespace mach {

// Scores of document n, repetition r: B contiguous values at scores + n * document_stride + r *
// repetition_stride.
template <class T>
struct MergeInput {
  const T* scores;
  int64_t document_stride, repetition_stride;
  const int32_t* buckets;  // [R, L]
  int64_t N, R, B, L;
  Merge merge;
};

template <class T>
struct MergeScoresParams {
  MergeInput<T> merge;
  const int64_t* labels;  // [N, m]; a label outside [0, L) gets NaN
  int64_t m;
  T* out;          // [N, m]: keys, or null
  int64_t* ranks;  // [N, m]: signed integers that order like the keys, NaN first; where out is null
};

template <class T>
cudaError_t launch_merge_scores(const MergeScoresParams<T>& params, cudaStream_t stream);

template <class T>
struct MergeScoresGradParams {
  MergeInput<T> merge;
  const int64_t* labels;  // [N, m]
  int64_t m;
  const T* grad;   // [N, m]
  int2* chosen;    // [N, m] scratch
  T* grad_scores;  // [N, R, B], zero on entry
};

template <class T>
cudaError_t launch_merge_scores_grad(const MergeScoresGradParams<T>& params, cudaStream_t stream);

}  // namespace mach
