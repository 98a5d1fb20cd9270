#include "../bucket_bce.h"

#include "../parallel.h"
#include "tensors.h"

namespace mach {
namespace {

Tensor bucket_bce_cpu(Tensor logits, const Tensor& buckets_, const Tensor& label_indices_,
                      const Tensor& label_indptr, double scale, bool gradient) {
  const char* op = "bucket_bce";
  const BucketBceArguments a = bucket_bce_arguments(op, logits, buckets_, label_indices_);
  const int64_t N = a.N, B = a.B;
  const Array<int64_t> indptr = safe_indptr(op, label_indptr, a.label_indices.numel());
  MACH_CHECK(static_cast<int64_t>(indptr.size()) == N + 1, op, ": label_indptr must have N + 1 entries");
  Tensor loss = allocate(logits, {N}, ScalarType::Double);
  dispatch_floating(op, "logits", logits, [&](auto t) {
    using T = decltype(t);
    const BucketBce<T> params{mutable_pointer<T>(logits),
                              a.stride,
                              B,
                              pointer<int32_t>(a.buckets),
                              a.buckets.numel(),
                              pointer<int64_t>(a.label_indices),
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
