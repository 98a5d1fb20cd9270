// sparse_adam, sparse_adagrad: optimiser steps on the rows of a parameter [P, M] that a sparse gradient
// names; other rows and their moments are neither read nor written.
//
// rows [U] are unique (the caller checks that they ascend), gradient [U, M]; rows = null means all P rows.
// A row outside [0, P) is passed over. Element by element, so no result depends on the split.
#pragma once

#include <cstdint>

#include "isa.h"

namespace mach {

template <class T>
struct RowStep {
  T* parameter;         // [P, M]
  const int64_t* rows;  // [U] or null
  const T* gradient;    // [U, M]
  int64_t P, M;
};

// m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;  x -= step_size m / (sqrt(v) + eps)
// as torch.optim.SparseAdam: step_size = lr sqrt(1 - beta2^t) / (1 - beta1^t), t the global step.
template <class Isa, class T>
void sparse_adam(const RowStep<T>& p, T* exp_avg, T* exp_avg_sq, T step_size, T beta1, T beta2, T eps,
                 int64_t begin, int64_t end);

// s += g^2;  x -= lr g / (sqrt(s) + eps)   as torch.optim.Adagrad with sparse gradients.
template <class Isa, class T>
void sparse_adagrad(const RowStep<T>& p, T* sum, T lr, T eps, int64_t begin, int64_t end);

}  // namespace mach
