#include "../bucket_bce.cuh"

#include <optional>

#include "tensors.h"

namespace mach {
namespace {

Tensor bucket_bce_cuda(Tensor logits, const std::optional<Tensor>& bias, const Tensor& buckets,
                       const Tensor& label_indices, const Tensor& label_indptr_, std::optional<double> scale,
                       std::optional<Tensor> out, std::optional<Tensor> grad_bias) {
  const char* op = "bucket_bce";
  const DeviceGuard guard(logits);
  const BucketBceArguments a =
      bucket_bce_arguments(op, logits, bias, buckets, label_indices, scale, out, grad_bias);
  const Tensor label_indptr = as_contiguous(label_indptr_);
  check_device(op, logits, {a.buckets, a.label_indices, label_indptr});
  for (const std::optional<Tensor>& t : {a.bias, out, grad_bias})
    if (t) check_device(op, logits, {*t});
  const Rows labels = rows_of(op, "label_indptr", label_indptr, a.label_indices.numel());
  MACH_CHECK(labels.N == a.N, op, ": label_indptr must have N + 1 entries");
  Tensor loss = allocate(logits, {a.N}, ScalarType::Double);
  dispatch_floating(op, "logits", logits, [&](auto t) {
    using T = decltype(t);
    BucketBceParams<T> params{mutable_pointer<T>(logits),
                              a.bias ? pointer<T>(*a.bias) : nullptr,
                              a.logits.document_stride,
                              a.logits.repetition_stride,
                              a.G,
                              a.B,
                              pointer<int32_t>(a.buckets),
                              a.L,
                              pointer<int64_t>(a.label_indices),
                              labels,
                              static_cast<T>(scale.value_or(0)),
                              scale.has_value(),
                              out ? mutable_pointer<bf16>(*out) : nullptr,
                              a.out.document_stride,
                              a.out.repetition_stride,
                              nullptr,
                              mutable_pointer<double>(loss),
                              nullptr,
                              grad_bias ? mutable_pointer<T>(*grad_bias) : nullptr};
    const int64_t parts = a.G * params.tiles(), blocks = (a.N + kBceRows - 1) / kBceRows;
    const Tensor partial_loss = parts == 1 ? loss : allocate(logits, {a.N, parts}, ScalarType::Double);
    const Tensor partial_columns = allocate(logits, {grad_bias ? blocks : 0, a.G, a.B});
    params.partial_loss = mutable_pointer<double>(partial_loss);
    if (grad_bias) params.partial_columns = mutable_pointer<T>(partial_columns);
    check_cuda(launch_bucket_bce(params, current_stream(logits)));
  });
  return loss;
}

}  // namespace
}  // namespace mach

MACH_CUDA_LIBRARY_IMPL(m) { MACH_CUDA_OPERATOR(bucket_bce); }
