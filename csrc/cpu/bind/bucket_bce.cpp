#include "bucket_bce.h"

#include "../bucket_bce.h"
#include "../parallel.h"

namespace mach {
namespace {

// What a call writes besides the gradient. Tasks are blocks of kBceRows rows of one repetition.
template <class T>
struct BucketBceSums {
  double* by_repetition;  // [G, N] losses
  T* columns;             // [blocks, G, B], or null
};

template <class Isa, class T>
void run_bucket_bce(const BucketBce<T>& p, int64_t G, int64_t blocks, const BucketBceSums<T>& sums) {
  parallel_ranges(blocks * G, p.N * G * p.B * 16, [&](int64_t begin, int64_t end) {
    Array<int64_t> mark(p.B, -1);
    Array<T> positive(p.B), row(p.out ? p.B : 0);
    const BucketBceScratch<T> scratch{mark.data(), positive.data(), row.data()};
    for (int64_t task = begin; task < end; ++task) {
      const int64_t g = task % G, first = task / G * kBceRows, last = std::min(p.N, first + kBceRows);
      T* column = sums.columns ? sums.columns + task * p.B : nullptr;
      bucket_bce<Isa>(p, g, scratch, sums.by_repetition + g * p.N, column, first, last);
    }
  });
}

}  // namespace

Tensor bucket_bce_cpu(Tensor logits, const std::optional<Tensor>& bias, const Tensor& buckets,
                      const Tensor& label_indices, const Tensor& label_indptr, std::optional<double> scale,
                      std::optional<Tensor> out, std::optional<Tensor> grad_bias) {
  const char* op = "bucket_bce";
  const BucketBceArguments a =
      bucket_bce_arguments(op, logits, bias, buckets, label_indices, scale, out, grad_bias);
  const int64_t N = a.N, G = a.G, B = a.B, blocks = (N + kBceRows - 1) / kBceRows;
  const Array<int64_t> indptr = safe_indptr(op, label_indptr, a.label_indices.numel());
  MACH_CHECK(static_cast<int64_t>(indptr.size()) == N + 1, op, ": label_indptr must have N + 1 entries");
  Tensor loss = allocate(logits, {N}, ScalarType::Double);
  dispatch_floating(op, "logits", logits, [&](auto t) {
    using T = decltype(t);
    const BucketBce<T> params{mutable_pointer<T>(logits),
                              a.bias ? pointer<T>(*a.bias) : nullptr,
                              a.logits.document_stride,
                              a.logits.repetition_stride,
                              N,
                              B,
                              pointer<int32_t>(a.buckets),
                              a.L,
                              pointer<int64_t>(a.label_indices),
                              indptr.data(),
                              static_cast<T>(scale.value_or(0)),
                              scale.has_value(),
                              out ? mutable_pointer<bf16>(*out) : nullptr,
                              a.out.document_stride,
                              a.out.repetition_stride};
    const auto losses = uninitialized<double>(bytes_of(N, G));
    const auto columns = uninitialized<T>(grad_bias ? bytes_of(blocks * G, B) : 0);
    with_isa<T>([&](auto isa) {
      using Isa = decltype(isa);
      const BucketBceSums<T> sums{losses.get(), grad_bias ? columns.get() : nullptr};
      run_bucket_bce<Isa>(params, G, blocks, sums);
      if (grad_bias)
        parallel_ranges(G * B, blocks * G * B, [&](int64_t begin, int64_t end) {
          sum_columns<Isa>(columns.get(), blocks, G * B, mutable_pointer<T>(*grad_bias), begin, end);
        });
    });
    double* total = mutable_pointer<double>(loss);
    for (int64_t n = 0; n < N; ++n) total[n] = G ? losses[n] : 0;
    for (int64_t g = 1; g < G; ++g)
      for (int64_t n = 0; n < N; ++n) total[n] += losses[g * N + n];
  });
  return loss;
}

}  // namespace mach

STABLE_TORCH_LIBRARY_IMPL(mach_ext, CPU, m) { MACH_OPERATOR(bucket_bce); }
