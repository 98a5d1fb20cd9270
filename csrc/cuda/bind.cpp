// CUDA operators: tensors -> params structs, device guard, current stream. Kernels are in <op>.cu.
#include <optional>

#include "../check.h"
#include "runtime.h"
#include "sparse_optim.cuh"

namespace mach {
namespace {

void sparse_adagrad_cuda(Tensor parameter, const std::optional<Tensor>& rows_, const Tensor& gradient_,
                         Tensor sum, double lr, double eps) {
  const char* op = "sparse_adagrad";
  STD_TORCH_CHECK(parameter.dim() == 2 && parameter.is_contiguous() && sum.is_contiguous(), op,
                  ": parameter [P, M] and sum must be contiguous");
  const int64_t P = parameter.size(0), M = parameter.size(1), U = rows_ ? rows_->numel() : P;
  check_shape(op, "gradient", gradient_, {U, M});
  check_shape(op, "sum", sum, {P, M});
  check_dtype(op, "gradient", gradient_, parameter.scalar_type());
  check_dtype(op, "sum", sum, parameter.scalar_type());
  const DeviceGuard guard(parameter);
  const Tensor gradient = torch::stable::contiguous(gradient_);
  std::optional<Tensor> rows;
  if (rows_) {
    check_dtype(op, "rows", *rows_, ScalarType::Long);
    rows = torch::stable::contiguous(*rows_);
  }
  dispatch_floating(op, "parameter", parameter, [&](auto t) {
    using T = decltype(t);
    const SparseAdagradParams<T> params{static_cast<T*>(parameter.mutable_data_ptr()),
                                        static_cast<T*>(sum.mutable_data_ptr()),
                                        rows ? static_cast<const int64_t*>(rows->const_data_ptr()) : nullptr,
                                        static_cast<const T*>(gradient.const_data_ptr()),
                                        P,
                                        M,
                                        U,
                                        static_cast<T>(lr),
                                        static_cast<T>(eps)};
    check_cuda(launch_sparse_adagrad(params, current_stream(parameter)));
  });
}

}  // namespace
}  // namespace mach

MACH_CUDA_LIBRARY_IMPL(m) { m.impl("sparse_adagrad", TORCH_BOX(&mach::sparse_adagrad_cuda)); }
