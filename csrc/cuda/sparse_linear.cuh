// CUDA twin of cpu/sparse_linear.h: the same layouts, the same meaning of what is out of range.
//
// Forward sums have the order of the row and its bits; so has the weight gradient of a feature with at most
// kShort entries. A longer one, and the gradient to values, are summed in another order, fixed by the shapes
// and by where arrays start (16 bytes or not): no atomics, the same bits each time.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../cpu/numeric.h"
#include "csr.cuh"
#include "sparse_optim.cuh"

namespace mach {

// W: T, or bf16 or fp16 where T is float.
template <class T, class W>
struct SparseLinearParams {
  const T* values;     // [nnz]
  IndexArray indices;  // [nnz]
  Rows rows;
  const W* weight;  // [R, D, M]
  const T* bias;    // [R, M] or null
  int64_t R, D, M;
  bool relu;
  T* out;  // [N, R, M]
};
template <class T, class W>
cudaError_t launch_sparse_linear(const SparseLinearParams<T, W>& params, cudaStream_t stream);

template <class T, class W>
struct SparseLinearGradValuesParams {
  const T* grad;       // [N, R, M]
  IndexArray indices;  // [nnz]
  Rows rows;
  const W* weight;  // [R, D, M]
  int64_t R, D, M;
  T* grad_values;  // [nnz]
};
template <class T, class W>
cudaError_t launch_sparse_linear_grad_values(const SparseLinearGradValuesParams<T, W>& params,
                                             cudaStream_t stream);

// Where the gradient rows of features go.
enum class GradientTo {
  rows,     // out [R, U, M]
  dense,    // out [R, D, M]: rows of features that do not occur are left as they are
  step,     // nowhere: the optimiser's step of weight [R, D, M]
  columns,  // out [D / B, M, B]: feature f = q B + b is column b of q
};

constexpr int64_t kShort = 64;  // entries that one warp sums

template <class T>
struct FeatureRowsParams {
  const T* values;  // [nnz]
  int64_t nnz;
  FeatureGroups groups;  // entries out of range are passed over
  const T* grad;         // [N, R, M]
  int64_t N, R, D, M;
  GradientTo to;
  T* out;
  Step<T> step;  // `out` is the weight
  int64_t B;
  T* sums;  // [D] or null: sum of the values of each feature that occurs
};
template <class T>
cudaError_t launch_feature_rows(const FeatureRowsParams<T>& params, cudaStream_t stream);

}  // namespace mach
