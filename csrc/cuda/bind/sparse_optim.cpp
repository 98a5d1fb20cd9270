#include "../sparse_optim.cuh"

#include <optional>
#include <vector>

#include "feature_order.h"
#include "tensors.h"

namespace mach {
namespace {

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
void row_step(const char* op, const Tensor& parameter, const std::optional<Tensor>& rows,
              const Tensor& gradient, std::initializer_list<Tensor> moments, const F& step) {
  const DeviceGuard guard(parameter);
  const RowStepArguments a = row_step_arguments(op, parameter, rows, gradient, moments);
  check_device(op, parameter, {a.gradient});
  check_device(op, parameter, moments);
  if (a.rows) check_device(op, parameter, {*a.rows});
  dispatch_floating(op, "parameter", parameter, [&](auto t) {
    using T = decltype(t);
    check_cuda(launch_sparse_optim(
        RowStepParams<T>{mutable_pointer<T>(parameter), a.rows ? pointer<int64_t>(*a.rows) : nullptr,
                         pointer<T>(a.gradient), a.P, a.M, a.U, step(t)},
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
                        const Tensor& grad, const Tensor& values, const std::vector<Tensor>& order,
                        const F& step) {
  const DeviceGuard guard(weight);
  const LinearStepArguments a = linear_step_arguments(op, weight, grad, values, moments);
  check_device(op, weight, {a.grad, a.values});
  check_device(op, weight, moments);
  const Groups groups = given_groups(op, weight, order);
  dispatch_floating(op, "weight", weight, [&](auto t) {
    auto params = feature_rows_params<decltype(t)>(a.values, groups, a.grad, a.D, GradientTo::step, weight);
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
