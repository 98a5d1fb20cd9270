#include "../bucket_backward.h"

#include <utility>

#include "../parallel.h"
#include "tensors.h"

namespace mach {
namespace {

Tensor bucket_backward_cpu(const Tensor& gradient_, const Tensor& hidden_, const Tensor& weight_,
                           double negligible, int64_t most, Tensor grad_hidden, Tensor grad_weight) {
  const char* op = "bucket_backward";
  MACH_CHECK(gradient_.dim() == 2 && hidden_.dim() == 2, op, ": gradient must be [N, B], hidden [N, H]");
  const int64_t N = gradient_.size(0), B = gradient_.size(1), H = hidden_.size(1);
  check_shape(op, "hidden", hidden_, {N, H});
  check_shape(op, "weight", weight_, {H, B});
  check_shape(op, "grad_hidden", grad_hidden, {N, H});
  check_shape(op, "grad_weight", grad_weight, {H, B});
  for (const auto& [name, t] : {std::pair<const char*, const Tensor&>{"hidden", hidden_},
                                {"weight", weight_},
                                {"grad_hidden", grad_hidden},
                                {"grad_weight", grad_weight}})
    check_dtype(op, name, t, gradient_.scalar_type());
  MACH_CHECK(grad_weight.is_contiguous() && (H <= 1 || grad_hidden.stride(1) == 1), op,
             ": grad_weight must be contiguous, grad_hidden's rows, too");
  MACH_CHECK(N <= INT32_MAX && B <= INT32_MAX, op, ": N and B must be below 2^31");
  const Tensor gradient = as_contiguous(gradient_), weight = as_contiguous(weight_);
  const Tensor hidden = H <= 1 || hidden_.stride(1) == 1 ? hidden_ : as_contiguous(hidden_);
  Tensor found = allocate(gradient, {}, ScalarType::Long);
  dispatch_floating(op, "gradient", gradient, [&](auto t) {
    using T = decltype(t);
    const BucketBackward<T> params{pointer<T>(gradient),
                                   pointer<T>(hidden),
                                   pointer<T>(weight),
                                   hidden.stride(0),
                                   N,
                                   H,
                                   B,
                                   static_cast<T>(negligible),
                                   mutable_pointer<T>(grad_hidden),
                                   grad_hidden.stride(0),
                                   mutable_pointer<T>(grad_weight)};
    with_isa<T>([&](auto isa) {
      using Tag = decltype(isa);
      Array<T> row(N), column(B);
      Array<int64_t> offset(N + 1), bucket_offset(B + 1);
      const Tensor kept = allocate(gradient, {N, B}, ScalarType::Int);
      parallel_ranges(B, N * B, [&](int64_t begin, int64_t end) {
        negligible_columns<Tag>(params, column.data(), begin, end);
      });
      parallel_ranges(N, N * B, [&](int64_t begin, int64_t end) {
        negligible_rows<Tag>(params, row.data(), mutable_pointer<int32_t>(kept), offset.data() + 1, begin,
                             end);
      });
      T total = 0;
      for (int64_t n = 0; n < N; ++n) {
        total += row[n];
        offset[n + 1] += offset[n];
      }
      for (T& sum : row) sum = total > 0 ? sum / total : T(0);
      const int64_t kept_entries = *mutable_pointer<int64_t>(found) = offset[N];
      if (kept_entries > most) return;
      Array<int32_t> bucket(kept_entries), document(kept_entries);
      Array<T> by_document(kept_entries), by_bucket(kept_entries);
      const SplitGradient<T> split{row.data(),    column.data(),   offset.data(),      bucket_offset.data(),
                                   bucket.data(), document.data(), by_document.data(), by_bucket.data()};
      split_gradient<Tag>(params, pointer<int32_t>(kept), split);
      const int64_t tiles = (H + kTile<Tag> - 1) / kTile<Tag>;
      parallel_ranges(tiles, (N + B + 2 * kept_entries) * H, [&](int64_t begin, int64_t end) {
        Array<T> scratch((N + B) * kTile<Tag>);
        bucket_backward<Tag>(params, split, scratch.data(), begin, end);
      });
    });
  });
  return found;
}

}  // namespace
}  // namespace mach

STABLE_TORCH_LIBRARY_IMPL(mach_ext, CPU, m) { MACH_OPERATOR(bucket_backward); }
