// What becomes of bucket logits in a prediction, on the CPU and in CUDA kernels.
#pragma once

#include "cpu/numeric.h"

namespace mach {

enum class Transform { none, sigmoid, logsigmoid };

template <class Isa, class T>
MACH_EVERYWHERE inline T transformed(Transform transform, T z) {
  if (transform == Transform::none) return z;
  const bool logarithm = transform == Transform::logsigmoid;
  T softplus, sigmoid;
  logistic<Isa>(logarithm ? -z : z, softplus, sigmoid);  // log sigmoid(z) = -softplus(-z)
  return logarithm ? -softplus : sigmoid;
}

}  // namespace mach
