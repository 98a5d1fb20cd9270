// CUDA twin of cpu/sparse_optim.h, the same arithmetic and bits. sparse_linear's fused steps share it.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

namespace mach {

enum class Optimizer { adam, adagrad };

// Adam:    m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;  x -= rate m / (sqrt(v) + eps)
// Adagrad: m += g^2;  x -= rate g / (sqrt(m) + eps)
template <class T>
struct Step {
  Optimizer optimizer;
  T *first, *second;  // moments, laid out as the parameter; Adagrad has no second
  T rate, beta1, beta2, eps;
};

// One element: its gradient, its value, its moments.
template <class T>
__device__ inline void step_element(const Step<T>& step, T g, T& x, T& first, T& second) {
  if (step.optimizer == Optimizer::adam) {
    first = step.beta1 * first + (T(1) - step.beta1) * g;
    second = step.beta2 * second + (T(1) - step.beta2) * (g * g);
    x -= step.rate * first / (sqrt(second) + step.eps);
  } else {
    first += g * g;
    x -= step.rate * g / (sqrt(first) + step.eps);
  }
}

template <class T>
struct RowStepParams {
  T* parameter;         // [P, M]
  const int64_t* rows;  // [U], unique, or null: all P rows; one outside [0, P) is passed over
  const T* gradient;    // [U, M]
  int64_t P, M, U;
  Step<T> step;
};

// No work, no launch, when U * M is 0.
template <class T>
cudaError_t launch_sparse_optim(const RowStepParams<T>& params, cudaStream_t stream);

}  // namespace mach
