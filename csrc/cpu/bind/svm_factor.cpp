#include "../svm_factor.h"

#include <algorithm>

#include "../parallel.h"
#include "tensors.h"

namespace mach {
namespace {

constexpr int64_t kGramRows = 32;  // of a task

Tensor svm_factor_cpu(const Tensor& values_, const Tensor& indices_, const Tensor& indptr_, int64_t D,
                      double C) {
  const char* op = "svm_factor";
  check_dtype(op, "indices", indices_, ScalarType::Int);
  MACH_CHECK(D >= 0 && D < (int64_t{1} << 20), op, ": D must be within 0 and 2^20 - 1, got ", D);
  MACH_CHECK(C >= 1e-6 && C <= 1e6, op, ": C must be within 1e-6 and 1e6");
  const Tensor values = as_contiguous(values_), indices = as_contiguous(indices_);
  const Array<int64_t> indptr = safe_indptr(op, indptr_, indices.numel());
  MACH_CHECK(values.numel() == indices.numel(), op, ": values and indices must be as many");
  const int32_t* feature = pointer<int32_t>(indices);
  for (int64_t e = 0; e < indices.numel(); ++e)
    MACH_CHECK(feature[e] >= 0 && feature[e] < D, op, ": an index is outside [0, D)");
  const int64_t size = D + 1, N = static_cast<int64_t>(indptr.size()) - 1;
  Tensor factor = allocate(values, {size, size});
  dispatch_floating(op, "values", values, [&](auto t) {
    using T = decltype(t);
    const SvmFactor<T> p{pointer<T>(values), feature, indptr.data(), nullptr, N, D, C};
    const auto gram = uninitialized<double>(bytes_of(size, size));
    with_isa<T>([&](auto isa) {
      using Isa = decltype(isa);
      pool()((size + kGramRows - 1) / kGramRows, [&](int64_t task) {
        Array<double> documents(kGramDocuments * size);
        const int64_t begin = task * kGramRows;
        svm_gram_rows<Isa>(p, begin, std::min(begin + kGramRows, size), documents.data(), gram.get());
      });
      svm_cholesky<Isa, T>(size, gram.get());
    });
    T* const out = mutable_pointer<T>(factor);
    for (int64_t i = 0; i < size; ++i)
      for (int64_t j = 0; j < size; ++j)
        out[i * size + j] = j <= i ? static_cast<T>(gram[i * size + j]) : T(0);
  });
  return factor;
}

}  // namespace
}  // namespace mach

STABLE_TORCH_LIBRARY_IMPL(mach_ext, CPU, m) { MACH_OPERATOR(svm_factor); }
