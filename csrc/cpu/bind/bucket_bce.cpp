#include "../bucket_bce.h"

#include "../parallel.h"
#include "tensors.h"

namespace mach {
namespace {

Tensor bucket_bce_cpu(Tensor logits, const Tensor& buckets_, const Tensor& label_indices_,
                      const Tensor& label_indptr, double scale, bool gradient) {
  const char* op = "bucket_bce";
  check_rows(op, "logits", logits, "[N, B]");
  const int64_t N = logits.size(0), B = logits.size(1);
  check_dtype(op, "buckets", buckets_, ScalarType::Int);
  check_dtype(op, "label_indices", label_indices_, ScalarType::Long);
  const Tensor buckets = as_contiguous(buckets_), label_indices = as_contiguous(label_indices_);
  const Array<int64_t> indptr = safe_indptr(op, label_indptr, label_indices.numel());
  MACH_CHECK(static_cast<int64_t>(indptr.size()) == N + 1, op, ": label_indptr must have N + 1 entries");
  Tensor loss = allocate(logits, {N}, ScalarType::Double);
  dispatch_floating(op, "logits", logits, [&](auto t) {
    using T = decltype(t);
    const BucketBce<T> params{mutable_pointer<T>(logits),
                              N ? logits.stride(0) : B,
                              B,
                              pointer<int32_t>(buckets),
                              buckets.numel(),
                              pointer<int64_t>(label_indices),
                              indptr.data(),
                              static_cast<T>(scale),
                              gradient};
    with_isa<T>([&](auto isa) {
      parallel_ranges(N, N * B * 16, [&](int64_t begin, int64_t end) {
        Array<int64_t> seen(B, -1);
        Array<T> positive(B);
        bucket_bce<decltype(isa)>(params, mutable_pointer<double>(loss), seen.data(), positive.data(), begin,
                                  end);
      });
    });
  });
  return loss;
}

}  // namespace
}  // namespace mach

STABLE_TORCH_LIBRARY_IMPL(mach_ext, CPU, m) { MACH_OPERATOR(bucket_bce); }
