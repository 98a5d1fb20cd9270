#include <tuple>

#include "../bucket_svm_tiles.h"
#include "../parallel.h"
#include "tensors.h"

namespace mach {
namespace {

using SvmOutcome = std::tuple<Tensor, Tensor>;

SvmOutcome bucket_svm_cpu(const Tensor& values_, const Tensor& indices_, const Tensor& indptr_,
                          const Tensor& buckets_, const Tensor& label_indices_, const Tensor& label_indptr_,
                          int64_t first, double C, double tolerance, int64_t max_passes,
                          const std::optional<Tensor>& factor_, Tensor weight, Tensor bias) {
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
  Tensor factor = values;
  if (factor_) {
    factor = as_contiguous(*factor_);
    check_shape(op, "factor", factor, {D + 1, D + 1});
    check_dtype(op, "factor", factor, values.scalar_type());
  }
  Tensor passes = allocate(values, {num_svm_tiles(M)}, ScalarType::Long);
  Tensor violations = allocate(values, {num_svm_tiles(M)}, ScalarType::Double);
  dispatch_floating(op, "values", values, [&](auto t) {
    using T = decltype(t);
    check_dtype(op, "weight", weight, values.scalar_type());
    check_dtype(op, "bias", bias, values.scalar_type());
    bucket_svm_tiles(BucketSvmTiles<T>{pointer<T>(values),
                                       feature,
                                       indptr.data(),
                                       N,
                                       D,
                                       M,
                                       pointer<int32_t>(buckets),
                                       label,
                                       label_indptr.data(),
                                       first,
                                       static_cast<T>(C),
                                       static_cast<T>(tolerance),
                                       max_passes,
                                       factor_ ? pointer<T>(factor) : nullptr,
                                       mutable_pointer<T>(weight),
                                       D ? weight.stride(0) : M,
                                       weight.stride(1),
                                       mutable_pointer<T>(bias),
                                       bias.stride(0),
                                       mutable_pointer<int64_t>(passes),
                                       mutable_pointer<double>(violations)},
                     pool());
  });
  return {passes, violations};
}

}  // namespace
}  // namespace mach

STABLE_TORCH_LIBRARY_IMPL(mach_ext, CPU, m) { MACH_OPERATOR(bucket_svm); }
