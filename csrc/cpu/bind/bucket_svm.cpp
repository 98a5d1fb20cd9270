#include "../bucket_svm.h"

#include <algorithm>

#include "../parallel.h"
#include "tensors.h"

namespace mach {
namespace {

// The first address from `pointer` on that is a multiple of kBytes.
template <size_t kBytes, class T>
T* aligned(T* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  return reinterpret_cast<T*>((address + kBytes - 1) / kBytes * kBytes);
}

Tensor bucket_svm_cpu(const Tensor& values_, const Tensor& indices_, const Tensor& indptr_,
                      const Tensor& buckets_, const Tensor& label_indices_, const Tensor& label_indptr_,
                      int64_t first, double C, double tolerance, int64_t max_passes, Tensor weight,
                      Tensor bias) {
  const char* op = "bucket_svm";
  MACH_CHECK(weight.dim() == 2, op, ": weight must be [D, M]");
  const int64_t D = weight.size(0), M = weight.size(1), N = indptr_.numel() - 1;
  check_shape(op, "bias", bias, {M});
  check_dtype(op, "indices", indices_, ScalarType::Int);
  check_dtype(op, "buckets", buckets_, ScalarType::Int);
  check_dtype(op, "label_indices", label_indices_, ScalarType::Long);
  MACH_CHECK(N < (int64_t{1} << 31), op, ": at most 2^31 - 1 documents, got ", N);
  MACH_CHECK(C >= 1e-6 && C <= 1e6 && tolerance > 0, op,
             ": C must be within 1e-6 and 1e6, tolerance above 0");
  MACH_CHECK(max_passes >= 1 && max_passes < (int64_t{1} << 31), op,
             ": max_passes must be within 1 and 2^31 - 1");
  const Tensor values = as_contiguous(values_), indices = as_contiguous(indices_);
  const Tensor buckets = as_contiguous(buckets_), label_indices = as_contiguous(label_indices_);
  const Array<int64_t> indptr = safe_indptr(op, indptr_, indices.numel());
  const Array<int64_t> label_indptr = safe_indptr(op, label_indptr_, label_indices.numel());
  MACH_CHECK(static_cast<int64_t>(label_indptr.size()) == N + 1, op,
             ": label_indptr must have N + 1 entries");
  MACH_CHECK(values.numel() == indices.numel(), op, ": values and indices must be as many");
  const int32_t* feature = pointer<int32_t>(indices);
  for (int64_t e = 0; e < indices.numel(); ++e)
    MACH_CHECK(feature[e] >= 0 && feature[e] < D, op, ": an index is outside [0, D)");
  const int64_t* label = pointer<int64_t>(label_indices);
  for (int64_t e = 0; e < label_indices.numel(); ++e)
    MACH_CHECK(label[e] >= 0 && label[e] < buckets.numel(), op, ": a label is outside [0, L)");
  const int64_t tiles = (M + kSvmTile - 1) / kSvmTile;
  Tensor passes = allocate(values, {tiles}, ScalarType::Long);
  dispatch_floating(op, "values", values, [&](auto t) {
    using T = decltype(t);
    check_dtype(op, "weight", weight, values.scalar_type());
    check_dtype(op, "bias", bias, values.scalar_type());
    const T* x = pointer<T>(values);
    Array<T> squares(N);
    for (int64_t n = 0; n < N; ++n) {
      double sum = 1;
      for (int64_t e = indptr[n]; e < indptr[n + 1]; ++e) sum += static_cast<double>(x[e]) * x[e];
      squares[n] = static_cast<T>(sum);
    }
    const BucketSvm<T> params{x,         feature,        indptr.data(),     N,
                              D,         squares.data(), static_cast<T>(C), static_cast<T>(tolerance),
                              max_passes};
    T* out = mutable_pointer<T>(weight);
    T* out_bias = mutable_pointer<T>(bias);
    const int64_t row = D ? weight.stride(0) : M, column = weight.stride(1), bias_stride = bias.stride(0);
    const auto solve = [&](int64_t tile) {
      const int64_t begin = tile * kSvmTile, size = std::min(kSvmTile, M - begin);
      Array<T> memory((D + 2) * kSvmTile), alpha(N * kSvmTile);
      T* const w = aligned<kSvmTile * sizeof(T)>(memory.data());
      Array<uint16_t> positives(N);
      Array<int32_t> order(N);
      uint32_t used = 0;
      for (int64_t n = 0; n < N; ++n)
        for (int64_t e = label_indptr[n]; e < label_indptr[n + 1]; ++e) {
          // What is no bucket at all is none of these, either.
          const int64_t b = pointer<int32_t>(buckets)[label[e]] - first - begin;
          if (b < 0 || b >= size) continue;
          positives[n] |= static_cast<uint16_t>(1u << b);
          used |= 1u << b;
        }
      const SvmScratch<T> scratch{w, alpha.data(), positives.data(), order.data(), used};
      with_isa<T>([&](auto isa) {
        mutable_pointer<int64_t>(passes)[tile] = used ? bucket_svm<decltype(isa)>(params, scratch) : 0;
      });
      for (int64_t d = 0; d < D; ++d)
        for (int64_t j = 0; j < size; ++j) out[d * row + (begin + j) * column] = w[d * kSvmTile + j];
      // Where no document wants a bucket: w = 0, a margin of -1.
      for (int64_t j = 0; j < size; ++j)
        out_bias[(begin + j) * bias_stride] = (used >> j) & 1u ? w[D * kSvmTile + j] : T(-1);
    };
    run_tasks(tiles, solve);
  });
  return passes;
}

}  // namespace
}  // namespace mach

STABLE_TORCH_LIBRARY_IMPL(mach_ext, CPU, m) { MACH_OPERATOR(bucket_svm); }
