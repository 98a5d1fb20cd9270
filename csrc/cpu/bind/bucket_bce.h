// The operator bucket_bce on the CPU, which bucket_forward_bce calls, too.
#pragma once

#include <optional>

#include "tensors.h"

namespace mach {

Tensor bucket_bce_cpu(Tensor logits, const std::optional<Tensor>& bias, const Tensor& buckets,
                      const Tensor& label_indices, const Tensor& label_indptr, std::optional<double> scale,
                      std::optional<Tensor> out, std::optional<Tensor> grad_bias);

}  // namespace mach
