#include "../bucket_forward.cuh"

#include <optional>
#include <string>
#include <tuple>

#include "tensors.h"

namespace mach {
namespace {

BucketForwardArguments forward_on_device(const char* op, const Tensor& hidden, const Tensor& weight,
                                         const std::optional<Tensor>& bias) {
  MACH_CHECK(has_bf16_mma(), op, ": needs a GPU of compute capability 8.0 or later");
  check_device(op, hidden, {weight});
  if (bias) check_device(op, hidden, {*bias});
  return bucket_forward_arguments(op, hidden, weight, bias);
}

BucketForwardParams forward_params(const BucketForwardArguments& a) {
  return {pointer<bf16>(a.hidden),
          a.document_stride,
          a.repetition_stride,
          pointer<bf16>(a.weight),
          a.bias ? pointer<float>(*a.bias) : nullptr,
          a.N,
          a.G,
          a.H,
          a.B};
}

Tensor bucket_forward_cuda(const Tensor& hidden, const Tensor& weight, const std::optional<Tensor>& bias,
                           const std::string& transform_) {
  const char* op = "bucket_forward";
  const DeviceGuard guard(hidden);
  const BucketForwardArguments a = forward_on_device(op, hidden, weight, bias);
  const Transform transform = parse_transform(op, transform_);
  Tensor scores = allocate(hidden, {a.N, a.G, a.B}, ScalarType::Float);
  check_cuda(launch_bucket_forward({forward_params(a), transform, mutable_pointer<float>(scores), {}},
                                   current_stream(hidden)));
  return scores;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> bucket_forward_extremes_cuda(
    const Tensor& hidden, const Tensor& weight, const std::optional<Tensor>& bias,
    const std::string& transform_) {
  const char* op = "bucket_forward_extremes";
  const DeviceGuard guard(hidden);
  const cudaStream_t stream = current_stream(hidden);
  const BucketForwardArguments a = forward_on_device(op, hidden, weight, bias);
  const Transform transform = parse_transform(op, transform_);
  const BucketForwardParams forward = forward_params(a);
  const int64_t tiles = forward.bucket_tiles();
  Tensor scores = allocate(hidden, {a.N, a.G, a.B}, ScalarType::Float);
  Tensor high = allocate(scores, {a.N, a.G}), low = allocate(scores, {a.N, a.G});
  Tensor best = allocate(scores, {a.N, a.G}, ScalarType::Int);
  Tensor peaks = allocate(scores, {a.N, a.G, num_peaks(a.B)});
  const Tensor least = allocate(scores, {a.N, a.G, tiles, 32});
  const Tensor faulty = allocate(scores, {a.N, a.G, tiles}, ScalarType::Int);
  const TileExtremes parts{mutable_pointer<float>(peaks), mutable_pointer<float>(least),
                           mutable_pointer<int32_t>(faulty)};
  check_cuda(launch_bucket_forward({forward, transform, mutable_pointer<float>(scores), parts}, stream));
  check_cuda(
      launch_tile_extremes({pointer<float>(scores), a.N * a.G, a.B, parts, mutable_pointer<float>(high),
                            mutable_pointer<float>(low), mutable_pointer<int32_t>(best)},
                           stream));
  return {scores, high, low, best, peaks};
}

std::tuple<Tensor, Tensor, Tensor> bucket_forward_bce_cuda(const Tensor& hidden, const Tensor& weight,
                                                           const std::optional<Tensor>& bias,
                                                           const Tensor& buckets, const Tensor& label_indices,
                                                           const Tensor& label_indptr_, double scale) {
  const char* op = "bucket_forward_bce";
  const DeviceGuard guard(hidden);
  const BucketForwardArguments a = forward_on_device(op, hidden, weight, bias);
  check_device(op, hidden, {buckets, label_indices, label_indptr_});
  const GroupLabels labels = group_labels(op, a, buckets, label_indices, label_indptr_);
  const Tensor label_indptr = as_contiguous(label_indptr_);
  const BucketForwardParams forward = forward_params(a);
  Tensor gradient = allocate(hidden, {a.N, a.G, a.B}, ScalarType::BFloat16);
  Tensor loss = allocate(hidden, {a.N}, ScalarType::Double);
  Tensor grad_bias = allocate(hidden, {a.G, a.B}, ScalarType::Float);
  Tensor document_parts = allocate(hidden, {a.G, forward.bucket_tiles(), a.N}, ScalarType::Double);
  Tensor bucket_parts = allocate(hidden, {forward.document_tiles(), a.G, a.B}, ScalarType::Float);
  check_cuda(launch_bucket_forward_bce(
      {forward, pointer<int32_t>(labels.buckets), labels.buckets.size(1),
       pointer<int64_t>(labels.label_indices),
       rows_of(op, "label_indptr", label_indptr, labels.label_indices.numel()), static_cast<float>(scale),
       mutable_pointer<uint16_t>(gradient), mutable_pointer<double>(loss), mutable_pointer<float>(grad_bias),
       mutable_pointer<double>(document_parts), mutable_pointer<float>(bucket_parts)},
      current_stream(hidden)));
  return {gradient, loss, grad_bias};
}

}  // namespace
}  // namespace mach

MACH_CUDA_LIBRARY_IMPL(m) {
  MACH_CUDA_OPERATOR(bucket_forward);
  MACH_CUDA_OPERATOR(bucket_forward_extremes);
  MACH_CUDA_OPERATOR(bucket_forward_bce);
}
