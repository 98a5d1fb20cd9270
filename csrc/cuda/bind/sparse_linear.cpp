#include "../sparse_linear.cuh"

#include <optional>
#include <tuple>

#include "feature_order.h"
#include "tensors.h"

namespace mach {
namespace {

// f(T(), W()): element types of values (or the gradient) and weight.
template <class F>
void dispatch_weight(const char* op, const Tensor& values, const Tensor& weight, const F& f) {
  dispatch_floating(op, "values", values, [&](auto value) {
    if constexpr (sizeof(value) == 4) {
      if (weight.scalar_type() == ScalarType::BFloat16) return f(value, bf16());
      if (weight.scalar_type() == ScalarType::Half) return f(value, fp16());
    }
    check_dtype(op, "weight", weight, values.scalar_type());
    f(value, value);
  });
}

Tensor sparse_linear_cuda(const Tensor& values_, const Tensor& indices_, const Tensor& indptr_,
                          const Tensor& weight_, const std::optional<Tensor>& bias_, bool relu,
                          const OptionalOrder&,  // would change nothing here
                          bool) {                // check: documents are not looked at
  const char* op = "sparse_linear";
  const DeviceGuard guard(values_);
  const SparseLinearArguments a = sparse_linear_arguments(op, values_, indices_, weight_, bias_);
  const Tensor &values = a.values, &indices = a.indices, &weight = a.weight;
  const Tensor indptr = as_contiguous(indptr_);
  check_device(op, values, {indices, indptr, weight});
  if (a.bias) check_device(op, values, {*a.bias});
  const int64_t R = a.R, D = a.D, M = a.M;
  const Rows rows = rows_of(op, "indptr", indptr, a.nnz);
  Tensor out = a.stacked ? allocate(values, {rows.N, R, M}) : allocate(values, {rows.N, M});
  dispatch_weight(op, values, weight, [&](auto t, auto w) {
    using T = decltype(t);
    using W = decltype(w);
    check_cuda(launch_sparse_linear(
        SparseLinearParams<T, W>{pointer<T>(values), index_array(op, "indices", indices), rows,
                                 pointer<W>(weight), a.bias ? pointer<T>(*a.bias) : nullptr, R, D, M, relu,
                                 mutable_pointer<T>(out)},
        current_stream(values)));
  });
  return out;
}

Tensor sparse_linear_grad_values_cuda(const Tensor& grad_, const Tensor& indices_, const Tensor& indptr_,
                                      const Tensor& weight_) {
  const char* op = "sparse_linear_grad_values";
  const DeviceGuard guard(grad_);
  const Tensor grad = as_contiguous(grad_), indices = as_contiguous(indices_),
               indptr = as_contiguous(indptr_), weight = as_contiguous(weight_);
  check_device(op, grad, {indices, indptr, weight});
  MACH_CHECK(weight.dim() == 3, op, ": weight must be [R, D, M]");
  const int64_t R = weight.size(0), D = weight.size(1), M = weight.size(2), nnz = indices.numel();
  const Rows rows = rows_of(op, "indptr", indptr, nnz);
  check_shape(op, "grad", grad, {rows.N, R, M});
  Tensor out = allocate(grad, {nnz});
  dispatch_weight(op, grad, weight, [&](auto t, auto w) {
    using T = decltype(t);
    using W = decltype(w);
    check_cuda(launch_sparse_linear_grad_values(
        SparseLinearGradValuesParams<T, W>{pointer<T>(grad), index_array(op, "indices", indices), rows,
                                           pointer<W>(weight), R, D, M, mutable_pointer<T>(out)},
        current_stream(grad)));
  });
  return out;
}

// The checks of a weight gradient, and its order, given or made; `sized`: with U known.
Groups gradient_groups(const char* op, const Tensor& grad, const Tensor& values, const Tensor& indices,
                       const Tensor& indptr, int64_t num_features, const OptionalOrder& order, bool sized) {
  check_device(op, grad, {values, indices, indptr});
  check_weight_gradient(op, grad, values, indices, indptr);
  if (order) return given_groups(op, grad, *order);
  const Groups groups = group_by_feature(op, indices, indptr, num_features);
  return sized ? sized_groups(groups) : groups;
}

Tensor sparse_linear_grad_weight_cuda(const Tensor& grad_, const Tensor& values_, const Tensor& indices,
                                      const Tensor& indptr, int64_t num_features,
                                      const OptionalOrder& order) {
  const char* op = "sparse_linear_grad_weight";
  const DeviceGuard guard(grad_);
  const Tensor grad = as_contiguous(grad_), values = as_contiguous(values_);
  const Groups groups = gradient_groups(op, grad, values, indices, indptr, num_features, order, false);
  Tensor out = new_zeros(grad, {grad.size(1), num_features, grad.size(2)});
  dispatch_floating(op, "grad", grad, [&](auto t) {
    check_cuda(launch_feature_rows(
        feature_rows_params<decltype(t)>(values, groups, grad, num_features, GradientTo::dense, out),
        current_stream(grad)));
  });
  return out;
}

std::tuple<Tensor, Tensor> sparse_linear_grad_rows_cuda(const Tensor& grad_, const Tensor& values_,
                                                        const Tensor& indices, const Tensor& indptr,
                                                        int64_t num_features, const OptionalOrder& order) {
  const char* op = "sparse_linear_grad_rows";
  const DeviceGuard guard(grad_);
  const Tensor grad = as_contiguous(grad_), values = as_contiguous(values_);
  const Groups groups = gradient_groups(op, grad, values, indices, indptr, num_features, order, true);
  // A copy: an operator may not return its argument.
  const Tensor features = order ? torch::stable::clone(groups.features) : groups.features;
  Tensor out = allocate(grad, {grad.size(1), features.numel(), grad.size(2)});
  dispatch_floating(op, "grad", grad, [&](auto t) {
    check_cuda(launch_feature_rows(
        feature_rows_params<decltype(t)>(values, groups, grad, num_features, GradientTo::rows, out),
        current_stream(grad)));
  });
  return {features, out};
}

}  // namespace
}  // namespace mach

MACH_CUDA_LIBRARY_IMPL(m) {
  MACH_CUDA_OPERATOR(sparse_linear);
  MACH_CUDA_OPERATOR(sparse_linear_grad_values);
  MACH_CUDA_OPERATOR(sparse_linear_grad_weight);
  MACH_CUDA_OPERATOR(sparse_linear_grad_rows);
}
