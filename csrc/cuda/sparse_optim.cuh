// CUDA twin of cpu/sparse_optim.h: one thread an element of a row that occurs.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace mach {

template <class T>
struct SparseAdagradParams {
  T* parameter;         // [P, M]
  T* sum;               // [P, M]
  const int64_t* rows;  // [U], unique, or null: all P rows
  const T* gradient;    // [U, M]
  int64_t P, M, U;
  T lr, eps;
};

// s += g^2;  x -= lr g / (sqrt(s) + eps). No work, no launch, when U * M is 0.
template <class T>
cudaError_t launch_sparse_adagrad(const SparseAdagradParams<T>& params, cudaStream_t stream);

}  // namespace mach
