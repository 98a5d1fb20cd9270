#include "../label_logits.cuh"

#include <optional>
#include <tuple>

#include "feature_order.h"
#include "tensors.h"

namespace mach {
namespace {

LabelLogitsArguments arguments_on_device(const char* op, const Tensor& hidden, const Tensor& weight,
                                         const Tensor& buckets, const Tensor& labels) {
  check_device(op, hidden, {weight, buckets, labels});
  return label_logits_arguments(op, hidden, weight, buckets, labels);
}

template <class T>
LabelLogitsParams<T> label_logits_params(const LabelLogitsArguments& a, const T* bias = nullptr) {
  return {pointer<T>(a.hidden),
          a.shared,
          pointer<T>(a.weight),
          bias,
          pointer<int32_t>(a.buckets),
          pointer<int64_t>(a.labels),
          a.N,
          a.m,
          a.R,
          a.H,
          a.B,
          a.L};
}

Tensor label_logits_cuda(const Tensor& hidden, const Tensor& weight, const std::optional<Tensor>& bias_,
                         const Tensor& buckets, const Tensor& labels) {
  const char* op = "label_logits";
  const DeviceGuard guard(hidden);
  const LabelLogitsArguments a = arguments_on_device(op, hidden, weight, buckets, labels);
  std::optional<Tensor> bias;
  if (bias_.has_value()) {
    check_device(op, hidden, {*bias_});
    bias = checked(op, "bias", *bias_, {a.R, a.B}, hidden.scalar_type());
  }
  Tensor out = allocate(hidden, {a.N, a.m, a.R});
  dispatch_floating(op, "hidden", hidden, [&](auto t) {
    using T = decltype(t);
    check_cuda(launch_label_logits(label_logits_params<T>(a, bias ? pointer<T>(*bias) : nullptr),
                                   mutable_pointer<T>(out), current_stream(hidden)));
  });
  return out;
}

Tensor label_logits_grad_hidden_cuda(const Tensor& grad_, const Tensor& hidden, const Tensor& weight,
                                     const Tensor& buckets, const Tensor& labels) {
  const char* op = "label_logits_grad_hidden";
  const DeviceGuard guard(hidden);
  const LabelLogitsArguments a = arguments_on_device(op, hidden, weight, buckets, labels);
  check_device(op, hidden, {grad_});
  const Tensor grad = a.checked_grad(op, grad_);
  Tensor out = allocate(hidden, a.hidden.sizes());
  dispatch_floating(op, "hidden", hidden, [&](auto t) {
    using T = decltype(t);
    check_cuda(launch_label_logits_grad_hidden(label_logits_params<T>(a), pointer<T>(grad),
                                               mutable_pointer<T>(out), current_stream(hidden)));
  });
  return out;
}

std::tuple<Tensor, Tensor> label_logits_grad_weight_cuda(const Tensor& grad_, const Tensor& hidden,
                                                         const Tensor& weight, const Tensor& buckets,
                                                         const Tensor& labels) {
  const char* op = "label_logits_grad_weight";
  const DeviceGuard guard(hidden);
  const LabelLogitsArguments a = arguments_on_device(op, hidden, weight, buckets, labels);
  check_device(op, hidden, {grad_});
  const Tensor grad = a.checked_grad(op, grad_);
  Tensor grad_weight = new_zeros(hidden, {a.R, a.H, a.B}), grad_bias = new_zeros(hidden, {a.R, a.B});
  const Groups groups =
      group(hidden, a.N * a.m * a.R, a.R * a.B, [&](auto key, auto* keys, int64_t* documents) {
        check_cuda(launch_label_keys(
            LabelKeysParams<decltype(key)>{a.shared, pointer<int32_t>(a.buckets), pointer<int64_t>(a.labels),
                                           a.N, a.m, a.R, a.B, a.L, keys, documents},
            current_stream(hidden)));
      });
  dispatch_floating(op, "hidden", hidden, [&](auto t) {
    using T = decltype(t);
    FeatureRowsParams<T> params{};
    params.values = pointer<T>(grad);
    params.nnz = grad.numel();
    params.groups = groups.view();
    params.grad = pointer<T>(a.hidden);
    params.N = a.shared ? a.N : a.N * a.R;
    params.R = 1;
    params.D = a.R * a.B;
    params.M = a.H;
    params.to = GradientTo::columns;
    params.out = mutable_pointer<T>(grad_weight);
    params.B = a.B;
    params.sums = mutable_pointer<T>(grad_bias);
    check_cuda(launch_feature_rows(params, current_stream(hidden)));
  });
  return {grad_weight, grad_bias};
}

}  // namespace
}  // namespace mach

MACH_CUDA_LIBRARY_IMPL(m) {
  MACH_CUDA_OPERATOR(label_logits);
  MACH_CUDA_OPERATOR(label_logits_grad_hidden);
  MACH_CUDA_OPERATOR(label_logits_grad_weight);
}
