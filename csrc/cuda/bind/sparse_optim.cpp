#include "../sparse_optim.cuh"

#include <optional>
#include <vector>

#include "feature_order.h"
#include "tensors.h"

namespace mach {
namespace {

// The checks that optimiser steps share. `shape`: of the parameter and its moments.
void check_step(const char* op, const Tensor& parameter, const Tensor& gradient,
                std::initializer_list<Tensor> moments, std::initializer_list<int64_t> shape) {
  check_dtype(op, "gradient", gradient, parameter.scalar_type());
  check_device(op, parameter, {gradient});
  check_device(op, parameter, moments);
  for (const Tensor& moment : moments) {
    check_shape(op, "state", moment, shape);
    check_dtype(op, "state", moment, parameter.scalar_type());
    MACH_CHECK(moment.is_contiguous(), op, ": state must be contiguous");
  }
}

template <class T>
Step<T> adam_step(const Tensor& exp_avg, const Tensor& exp_avg_sq, double step_size, double beta1,
                  double beta2, double eps) {
  return {Optimizer::adam,           mutable_pointer<T>(exp_avg), mutable_pointer<T>(exp_avg_sq),
          static_cast<T>(step_size), static_cast<T>(beta1),       static_cast<T>(beta2),
          static_cast<T>(eps)};
}
template <class T>
Step<T> adagrad_step(const Tensor& sum, double lr, double eps) {
  return {Optimizer::adagrad, mutable_pointer<T>(sum), nullptr, static_cast<T>(lr), T(0), T(0),
          static_cast<T>(eps)};
}

// step(T()) -> Step<T>
template <class F>
void row_step(const char* op, const Tensor& parameter, const std::optional<Tensor>& rows_,
              const Tensor& gradient_, std::initializer_list<Tensor> moments, const F& step) {
  MACH_CHECK(parameter.dim() == 2 && parameter.is_contiguous(), op, ": parameter must be contiguous [P, M]");
  const DeviceGuard guard(parameter);
  const int64_t P = parameter.size(0), M = parameter.size(1), U = rows_ ? rows_->numel() : P;
  const Tensor gradient = as_contiguous(gradient_);
  check_shape(op, "gradient", gradient, {U, M});
  check_step(op, parameter, gradient, moments, {P, M});
  std::optional<Tensor> rows;
  if (rows_) {
    check_dtype(op, "rows", *rows_, ScalarType::Long);
    check_device(op, parameter, {*rows_});
    rows = as_contiguous(*rows_);
  }
  dispatch_floating(op, "parameter", parameter, [&](auto t) {
    using T = decltype(t);
    check_cuda(launch_sparse_optim(
        RowStepParams<T>{mutable_pointer<T>(parameter), rows ? pointer<int64_t>(*rows) : nullptr,
                         pointer<T>(gradient), P, M, U, step(t)},
        current_stream(parameter)));
  });
}

void sparse_adam_cuda(Tensor parameter, const std::optional<Tensor>& rows, const Tensor& gradient,
                      Tensor exp_avg, Tensor exp_avg_sq, double step_size, double beta1, double beta2,
                      double eps) {
  row_step("sparse_adam", parameter, rows, gradient, {exp_avg, exp_avg_sq},
           [&](auto t) { return adam_step<decltype(t)>(exp_avg, exp_avg_sq, step_size, beta1, beta2, eps); });
}

void sparse_adagrad_cuda(Tensor parameter, const std::optional<Tensor>& rows, const Tensor& gradient,
                         Tensor sum, double lr, double eps) {
  row_step("sparse_adagrad", parameter, rows, gradient, {sum},
           [&](auto t) { return adagrad_step<decltype(t)>(sum, lr, eps); });
}

template <class F>
void sparse_linear_step(const char* op, const Tensor& weight, std::initializer_list<Tensor> moments,
                        const Tensor& grad_, const Tensor& values_, const std::vector<Tensor>& order,
                        const F& step) {
  MACH_CHECK(weight.dim() == 3 && weight.is_contiguous(), op, ": weight must be contiguous [R, D, M]");
  const DeviceGuard guard(weight);
  const int64_t R = weight.size(0), D = weight.size(1), M = weight.size(2);
  const Tensor grad = as_contiguous(grad_), values = as_contiguous(values_);
  MACH_CHECK(grad.dim() == 3, op, ": grad must be [N, R, M]");
  check_shape(op, "grad", grad, {grad.size(0), R, M});
  check_step(op, weight, grad, moments, {R, D, M});
  check_dtype(op, "values", values, weight.scalar_type());
  check_device(op, weight, {values});
  const Groups groups = given_groups(op, weight, order);
  dispatch_floating(op, "weight", weight, [&](auto t) {
    auto params = feature_rows_params<decltype(t)>(values, groups, grad, D, GradientTo::step, weight);
    params.step = step(t);
    check_cuda(launch_feature_rows(params, current_stream(weight)));
  });
}

void sparse_linear_adam_cuda(Tensor weight, Tensor exp_avg, Tensor exp_avg_sq, const Tensor& grad,
                             const Tensor& values, std::vector<Tensor> order, double step_size, double beta1,
                             double beta2, double eps) {
  sparse_linear_step("sparse_linear_adam", weight, {exp_avg, exp_avg_sq}, grad, values, order, [&](auto t) {
    return adam_step<decltype(t)>(exp_avg, exp_avg_sq, step_size, beta1, beta2, eps);
  });
}

void sparse_linear_adagrad_cuda(Tensor weight, Tensor sum, const Tensor& grad, const Tensor& values,
                                std::vector<Tensor> order, double lr, double eps) {
  sparse_linear_step("sparse_linear_adagrad", weight, {sum}, grad, values, order,
                     [&](auto t) { return adagrad_step<decltype(t)>(sum, lr, eps); });
}

}  // namespace
}  // namespace mach

MACH_CUDA_LIBRARY_IMPL(m) {
  MACH_CUDA_OPERATOR(sparse_adam);
  MACH_CUDA_OPERATOR(sparse_adagrad);
  MACH_CUDA_OPERATOR(sparse_linear_adam);
  MACH_CUDA_OPERATOR(sparse_linear_adagrad);
}
