#include "../bucket_bce.cuh"

#include "tensors.h"

namespace mach {
namespace {

Tensor bucket_bce_cuda(Tensor logits, const Tensor& buckets_, const Tensor& label_indices_,
                       const Tensor& label_indptr_, double scale, bool gradient) {
  const char* op = "bucket_bce";
  const DeviceGuard guard(logits);
  const BucketBceArguments a = bucket_bce_arguments(op, logits, buckets_, label_indices_);
  const Tensor label_indptr = as_contiguous(label_indptr_);
  check_device(op, logits, {a.buckets, a.label_indices, label_indptr});
  const Rows labels = rows_of(op, "label_indptr", label_indptr, a.label_indices.numel());
  MACH_CHECK(labels.N == a.N, op, ": label_indptr must have N + 1 entries");
  Tensor loss = new_empty(logits, {a.N}, ScalarType::Double);
  dispatch_floating(op, "logits", logits, [&](auto t) {
    using T = decltype(t);
    check_cuda(launch_bucket_bce(
        BucketBceParams<T>{mutable_pointer<T>(logits), a.stride, a.B, pointer<int32_t>(a.buckets),
                           a.buckets.numel(), pointer<int64_t>(a.label_indices), labels,
                           static_cast<T>(scale), gradient, mutable_pointer<double>(loss)},
        current_stream(logits)));
  });
  return loss;
}

}  // namespace
}  // namespace mach

MACH_CUDA_LIBRARY_IMPL(m) { MACH_CUDA_OPERATOR(bucket_bce); }
