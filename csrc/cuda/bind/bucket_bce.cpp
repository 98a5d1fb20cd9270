#include "../bucket_bce.cuh"

#include "tensors.h"

namespace mach {
namespace {

Tensor bucket_bce_cuda(Tensor logits, const Tensor& buckets_, const Tensor& label_indices_,
                       const Tensor& label_indptr_, double scale, bool gradient) {
  const char* op = "bucket_bce";
  check_rows(op, "logits", logits, "[N, B]");
  const DeviceGuard guard(logits);
  const int64_t N = logits.size(0), B = logits.size(1);
  check_dtype(op, "buckets", buckets_, ScalarType::Int);
  check_dtype(op, "label_indices", label_indices_, ScalarType::Long);
  const Tensor buckets = as_contiguous(buckets_), label_indices = as_contiguous(label_indices_),
               label_indptr = as_contiguous(label_indptr_);
  check_device(op, logits, {buckets, label_indices, label_indptr});
  const Rows labels = rows_of(op, "label_indptr", label_indptr, label_indices.numel());
  MACH_CHECK(labels.N == N, op, ": label_indptr must have N + 1 entries");
  Tensor loss = new_empty(logits, {N}, ScalarType::Double);
  dispatch_floating(op, "logits", logits, [&](auto t) {
    using T = decltype(t);
    check_cuda(launch_bucket_bce(
        BucketBceParams<T>{mutable_pointer<T>(logits), N ? logits.stride(0) : B, B, pointer<int32_t>(buckets),
                           buckets.numel(), pointer<int64_t>(label_indices), labels, static_cast<T>(scale),
                           gradient, mutable_pointer<double>(loss)},
        current_stream(logits)));
  });
  return loss;
}

}  // namespace
}  // namespace mach

MACH_CUDA_LIBRARY_IMPL(m) { MACH_CUDA_OPERATOR(bucket_bce); }
