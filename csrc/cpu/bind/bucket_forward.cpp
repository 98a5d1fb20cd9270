#include "../bucket_forward.h"

#include <optional>
#include <string>
#include <tuple>

#include "../bucket_extremes.h"
#include "../parallel.h"
#include "bucket_bce.h"
#include "tensors.h"

namespace mach {
namespace {

Tensor scores_of(const BucketForwardArguments& a, Transform transform) {
  Tensor scores = allocate(a.hidden, {a.N, a.G, a.B}, ScalarType::Float);
  const BucketForward<float> params{pointer<bf16>(a.hidden),
                                    a.document_stride,
                                    a.repetition_stride,
                                    pointer<bf16>(a.weight),
                                    a.bias ? pointer<float>(*a.bias) : nullptr,
                                    a.G,
                                    a.H,
                                    a.B};
  with_isa<float>([&](auto isa) {
    parallel_ranges(a.N, a.N * a.G * a.B * (a.H + 16), [&](int64_t begin, int64_t end) {
      Array<float> units(a.H);
      bucket_forward<decltype(isa)>(params, transform, units.data(), mutable_pointer<float>(scores), begin,
                                    end);
    });
  });
  return scores;
}

Tensor bucket_forward_cpu(const Tensor& hidden, const Tensor& weight, const std::optional<Tensor>& bias,
                          const std::string& transform) {
  const char* op = "bucket_forward";
  return scores_of(bucket_forward_arguments(op, hidden, weight, bias), parse_transform(op, transform));
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> bucket_forward_extremes_cpu(
    const Tensor& hidden, const Tensor& weight, const std::optional<Tensor>& bias,
    const std::string& transform) {
  const char* op = "bucket_forward_extremes";
  const BucketForwardArguments a = bucket_forward_arguments(op, hidden, weight, bias);
  Tensor scores = scores_of(a, parse_transform(op, transform));
  const int64_t groups = (a.B + 255) / 256 * 4;
  Tensor high = allocate(scores, {a.N, a.G}, ScalarType::Float);
  Tensor low = allocate(scores, {a.N, a.G}, ScalarType::Float);
  Tensor best = allocate(scores, {a.N, a.G}, ScalarType::Int);
  Tensor peaks = allocate(scores, {a.N, a.G, groups}, ScalarType::Float);
  for (int64_t row = 0; row < a.N * a.G; ++row) {
    const RowExtremes e =
        row_extremes(pointer<float>(scores) + row * a.B, a.B, mutable_pointer<float>(peaks) + row * groups);
    mutable_pointer<float>(high)[row] = e.high;
    mutable_pointer<float>(low)[row] = e.low;
    mutable_pointer<int32_t>(best)[row] = e.best;
  }
  return {scores, high, low, best, peaks};
}

std::tuple<Tensor, Tensor, Tensor> bucket_forward_bce_cpu(const Tensor& hidden, const Tensor& weight,
                                                          const std::optional<Tensor>& bias,
                                                          const Tensor& buckets, const Tensor& label_indices,
                                                          const Tensor& label_indptr, double scale) {
  const char* op = "bucket_forward_bce";
  const BucketForwardArguments a = bucket_forward_arguments(op, hidden, weight, bias);
  const GroupLabels labels = group_labels(op, a, buckets, label_indices, label_indptr);
  Tensor gradient = allocate(a.hidden, {a.N, a.G, a.B}, ScalarType::BFloat16);
  Tensor grad_bias = allocate(a.hidden, {a.G, a.B}, ScalarType::Float);
  Tensor loss = bucket_bce_cpu(scores_of(a, Transform::none), std::nullopt, labels.buckets,
                               labels.label_indices, label_indptr, scale, gradient, grad_bias);
  return {gradient, loss, grad_bias};
}

}  // namespace
}  // namespace mach

STABLE_TORCH_LIBRARY_IMPL(mach_ext, CPU, m) {
  MACH_OPERATOR(bucket_forward);
  MACH_OPERATOR(bucket_forward_extremes);
  MACH_OPERATOR(bucket_forward_bce);
}
