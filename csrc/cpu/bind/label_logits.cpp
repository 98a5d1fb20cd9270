#include "../label_logits.h"

#include <optional>
#include <tuple>

#include "../parallel.h"
#include "tensors.h"

namespace mach {
namespace {

int64_t work(const LabelLogitsArguments& a) { return a.labels.numel() * a.R * a.H; }

template <class T>
LabelLogits<T> label_logits_params(const LabelLogitsArguments& a) {
  return {pointer<T>(a.hidden),
          a.shared ? a.H : a.R * a.H,
          a.shared ? 0 : a.H,
          pointer<T>(a.weight),
          nullptr,
          pointer<int32_t>(a.buckets),
          pointer<int64_t>(a.labels),
          a.N,
          a.m,
          a.R,
          a.H,
          a.B,
          a.L};
}

Tensor label_logits_cpu(const Tensor& hidden, const Tensor& weight, const std::optional<Tensor>& bias_,
                        const Tensor& buckets, const Tensor& labels) {
  const char* op = "label_logits";
  const LabelLogitsArguments a = label_logits_arguments(op, hidden, weight, buckets, labels);
  std::optional<Tensor> bias;
  if (bias_.has_value()) bias = checked(op, "bias", *bias_, {a.R, a.B}, hidden.scalar_type());
  Tensor out = allocate(hidden, {a.N, a.m, a.R});
  dispatch_floating(op, "hidden", hidden, [&](auto t) {
    using T = decltype(t);
    LabelLogits<T> params = label_logits_params<T>(a);
    params.bias = bias ? pointer<T>(*bias) : nullptr;
    with_isa<T>([&](auto isa) {
      parallel_ranges(a.N, work(a), [&](int64_t begin, int64_t end) {
        label_logits<decltype(isa)>(params, mutable_pointer<T>(out), begin, end);
      });
    });
  });
  return out;
}

Tensor label_logits_grad_hidden_cpu(const Tensor& grad_, const Tensor& hidden, const Tensor& weight,
                                    const Tensor& buckets, const Tensor& labels) {
  const char* op = "label_logits_grad_hidden";
  const LabelLogitsArguments a = label_logits_arguments(op, hidden, weight, buckets, labels);
  const Tensor grad = a.checked_grad(op, grad_);
  Tensor out = zeros(a.hidden, a.hidden.sizes());
  dispatch_floating(op, "hidden", hidden, [&](auto t) {
    using T = decltype(t);
    with_isa<T>([&](auto isa) {
      parallel_ranges(a.N, work(a), [&](int64_t begin, int64_t end) {
        label_logits_grad_hidden<decltype(isa)>(label_logits_params<T>(a), pointer<T>(grad),
                                                mutable_pointer<T>(out), begin, end);
      });
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> label_logits_grad_weight_cpu(const Tensor& grad_, const Tensor& hidden,
                                                        const Tensor& weight, const Tensor& buckets,
                                                        const Tensor& labels) {
  const char* op = "label_logits_grad_weight";
  const LabelLogitsArguments a = label_logits_arguments(op, hidden, weight, buckets, labels);
  const Tensor grad = a.checked_grad(op, grad_);
  Tensor grad_weight = zeros(hidden, {a.R, a.H, a.B}), grad_bias = zeros(hidden, {a.R, a.B});
  dispatch_floating(op, "hidden", hidden, [&](auto t) {
    using T = decltype(t);
    with_isa<T>([&](auto isa) {
      const LabelLogits<T> params = label_logits_params<T>(a);
      parallel_ranges(a.R * a.H, work(a), [&](int64_t begin, int64_t end) {
        label_logits_grad_weight<decltype(isa)>(params, pointer<T>(grad), mutable_pointer<T>(grad_weight),
                                                begin, end);
      });
      label_logits_grad_bias<decltype(isa)>(params, pointer<T>(grad), mutable_pointer<T>(grad_bias));
    });
  });
  return {grad_weight, grad_bias};
}

}  // namespace
}  // namespace mach

STABLE_TORCH_LIBRARY_IMPL(mach_ext, CPU, m) {
  MACH_OPERATOR(label_logits);
  MACH_OPERATOR(label_logits_grad_hidden);
  MACH_OPERATOR(label_logits_grad_weight);
}
