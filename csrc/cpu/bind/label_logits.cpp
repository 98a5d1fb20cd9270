#include "../label_logits.h"

#include <optional>
#include <tuple>

#include "../parallel.h"
#include "tensors.h"

namespace mach {
namespace {

// Contiguous arguments and the parameters that point into them.
struct LabelLogitsArguments {
  Tensor hidden, weight, buckets, labels;
  int64_t work() const { return labels.numel() * weight.size(0) * weight.size(1); }
  Tensor checked_grad(const char* op, const Tensor& grad) const {
    return checked(op, "grad", grad, {labels.size(0), labels.size(1), weight.size(0)}, hidden.scalar_type());
  }

  template <class T>
  LabelLogits<T> params() const {
    const int64_t H = weight.size(1), r_stride = hidden.dim() == 3 ? H : 0;
    return {pointer<T>(hidden),
            hidden.dim() == 3 ? weight.size(0) * H : H,
            r_stride,
            pointer<T>(weight),
            nullptr,
            pointer<int32_t>(buckets),
            pointer<int64_t>(labels),
            labels.size(0),
            labels.size(1),
            weight.size(0),
            H,
            weight.size(2),
            buckets.size(1)};
  }
};

LabelLogitsArguments label_logits_arguments(const char* op, const Tensor& hidden, const Tensor& weight,
                                            const Tensor& buckets, const Tensor& labels) {
  MACH_CHECK(weight.dim() == 3 && labels.dim() == 2, op, ": weight must be [R, H, B], labels [N, m]");
  const int64_t N = labels.size(0), R = weight.size(0), H = weight.size(1);
  if (hidden.dim() == 3)
    check_shape(op, "hidden", hidden, {N, R, H});
  else
    check_shape(op, "hidden", hidden, {N, H});
  check_dtype(op, "weight", weight, hidden.scalar_type());
  check_dtype(op, "buckets", buckets, ScalarType::Int);
  check_dtype(op, "labels", labels, ScalarType::Long);
  check_shape(op, "buckets", buckets, {R, buckets.size(1)});
  return {as_contiguous(hidden), as_contiguous(weight), as_contiguous(buckets), as_contiguous(labels)};
}

Tensor label_logits_cpu(const Tensor& hidden, const Tensor& weight, const std::optional<Tensor>& bias_,
                        const Tensor& buckets, const Tensor& labels) {
  const char* op = "label_logits";
  const LabelLogitsArguments a = label_logits_arguments(op, hidden, weight, buckets, labels);
  const int64_t N = labels.size(0), m = labels.size(1), R = weight.size(0), B = weight.size(2);
  std::optional<Tensor> bias;
  if (bias_.has_value()) bias = checked(op, "bias", *bias_, {R, B}, hidden.scalar_type());
  Tensor out = allocate(hidden, {N, m, R});
  dispatch_floating(op, "hidden", hidden, [&](auto t) {
    using T = decltype(t);
    LabelLogits<T> params = a.params<T>();
    params.bias = bias ? pointer<T>(*bias) : nullptr;
    with_isa<T>([&](auto isa) {
      parallel_ranges(N, a.work(), [&](int64_t begin, int64_t end) {
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
      parallel_ranges(labels.size(0), a.work(), [&](int64_t begin, int64_t end) {
        label_logits_grad_hidden<decltype(isa)>(a.params<T>(), pointer<T>(grad), mutable_pointer<T>(out),
                                                begin, end);
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
  const int64_t R = weight.size(0), H = weight.size(1), B = weight.size(2);
  Tensor grad_weight = zeros(hidden, {R, H, B}), grad_bias = zeros(hidden, {R, B});
  dispatch_floating(op, "hidden", hidden, [&](auto t) {
    using T = decltype(t);
    with_isa<T>([&](auto isa) {
      const LabelLogits<T> params = a.params<T>();
      parallel_ranges(R * H, a.work(), [&](int64_t begin, int64_t end) {
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
