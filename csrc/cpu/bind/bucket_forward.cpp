#include "../bucket_forward.h"

#include <optional>
#include <string>
#include <tuple>

#include "../bucket_bce.h"
#include "../parallel.h"
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

std::tuple<Tensor, Tensor, Tensor> bucket_forward_bce_cpu(const Tensor& hidden, const Tensor& weight,
                                                          const std::optional<Tensor>& bias,
                                                          const Tensor& buckets, const Tensor& label_indices,
                                                          const Tensor& label_indptr, double scale) {
  const char* op = "bucket_forward_bce";
  const BucketForwardArguments a = bucket_forward_arguments(op, hidden, weight, bias);
  const GroupLabels labels = group_labels(op, a, buckets, label_indices, label_indptr);
  const int64_t N = a.N, columns = a.G * a.B, L = labels.buckets.size(1);
  const Array<int64_t> indptr = safe_indptr(op, label_indptr, labels.label_indices.numel());
  Tensor logits = scores_of(a, Transform::none);
  Tensor gradient = allocate(a.hidden, {N, a.G, a.B}, ScalarType::BFloat16);
  Tensor loss = allocate(a.hidden, {N}, ScalarType::Double);
  Tensor grad_bias = allocate(a.hidden, {a.G, a.B}, ScalarType::Float);
  double* losses = mutable_pointer<double>(loss);
  float* z = mutable_pointer<float>(logits);
  with_isa<float>([&](auto isa) {
    parallel_ranges(N, N * columns * 16, [&](int64_t begin, int64_t end) {
      Array<int64_t> seen(a.B);
      Array<float> positive(a.B);
      Array<double> part(N);  // losses of a repetition
      for (int64_t n = begin; n < end; ++n) losses[n] = 0;
      for (int64_t g = 0; g < a.G; ++g) {
        std::fill(seen.begin(), seen.end(), -1);
        const BucketBce<float> params{z + g * a.B,
                                      columns,
                                      a.B,
                                      pointer<int32_t>(labels.buckets) + g * L,
                                      L,
                                      pointer<int64_t>(labels.label_indices),
                                      indptr.data(),
                                      static_cast<float>(scale),
                                      true};
        bucket_bce<decltype(isa)>(params, part.data(), seen.data(), positive.data(), begin, end);
        for (int64_t n = begin; n < end; ++n) losses[n] += part[n];
      }
    });
    parallel_ranges(columns, N * columns * 4, [&](int64_t begin, int64_t end) {
      round_gradient<decltype(isa)>(z, N, columns, mutable_pointer<uint16_t>(gradient),
                                    mutable_pointer<float>(grad_bias), begin, end);
    });
  });
  return {gradient, loss, grad_bias};
}

}  // namespace
}  // namespace mach

STABLE_TORCH_LIBRARY_IMPL(mach_ext, CPU, m) {
  MACH_OPERATOR(bucket_forward);
  MACH_OPERATOR(bucket_forward_bce);
}
