#include "../sparse_optim.h"

#include <optional>
#include <type_traits>
#include <vector>

#include "../sparse_linear.h"
#include "feature_order.h"
#include "tensors.h"

namespace mach {
namespace {

// The checks and the split that the optimiser steps share. Calls f(RowStep<T>, state pointers' offset, begin,
// end). `state` are the moments. Without rows every row is stepped, so the work is split by elements.
template <class F>
void dispatch_row_step(const char* op, const Tensor& parameter, const std::optional<Tensor>& rows,
                       const Tensor& gradient, std::initializer_list<Tensor> state, const F& f) {
  const RowStepArguments a = row_step_arguments(op, parameter, rows, gradient, state);
  const int64_t P = a.P, M = a.M, U = a.U;
  dispatch_floating(op, "parameter", parameter, [&](auto t) {
    using T = decltype(t);
    T* x = mutable_pointer<T>(parameter);
    const T* g = pointer<T>(a.gradient);
    if (!a.rows)
      return parallel_ranges(P * M, P * M * 4, [&](int64_t begin, int64_t end) {
        f(RowStep<T>{x + begin, nullptr, g + begin, 1, end - begin}, begin, 0, 1);
      });
    const RowStep<T> params{x, pointer<int64_t>(*a.rows), g, P, M};
    parallel_ranges(U, U * M * 4, [&](int64_t begin, int64_t end) { f(params, 0, begin, end); });
  });
}

void sparse_adam_cpu(Tensor parameter, const std::optional<Tensor>& rows, const Tensor& gradient,
                     Tensor exp_avg, Tensor exp_avg_sq, double step_size, double beta1, double beta2,
                     double eps) {
  dispatch_row_step("sparse_adam", parameter, rows, gradient, {exp_avg, exp_avg_sq},
                    [&](const auto& params, int64_t offset, int64_t begin, int64_t end) {
                      using T = std::decay_t<decltype(*params.parameter)>;
                      with_isa<T>([&](auto isa) {
                        sparse_adam<decltype(isa), T>(params, mutable_pointer<T>(exp_avg) + offset,
                                                      mutable_pointer<T>(exp_avg_sq) + offset, step_size,
                                                      beta1, beta2, eps, begin, end);
                      });
                    });
}

void sparse_adagrad_cpu(Tensor parameter, const std::optional<Tensor>& rows, const Tensor& gradient,
                        Tensor sum, double lr, double eps) {
  dispatch_row_step("sparse_adagrad", parameter, rows, gradient, {sum},
                    [&](const auto& params, int64_t offset, int64_t begin, int64_t end) {
                      using T = std::decay_t<decltype(*params.parameter)>;
                      with_isa<T>([&](auto isa) {
                        sparse_adagrad<decltype(isa), T>(params, mutable_pointer<T>(sum) + offset, lr, eps,
                                                         begin, end);
                      });
                    });
}

// sparse_linear_adam, sparse_linear_adagrad: the weight's gradient of one row after the other, in scratch
// that stays in the cache, and at once the step of that row: no gradient tensor. Composed of the kernels that
// sparse_linear_grad_rows and the optimiser steps use, so the bits are theirs.
// f(isa, RowStep<T> of one row).
template <class F>
void sparse_linear_step(const char* op, const Tensor& weight, std::initializer_list<Tensor> state,
                        const Tensor& grad_, const Tensor& values_, const std::vector<Tensor>& given,
                        const F& f) {
  const LinearStepArguments a = linear_step_arguments(op, weight, grad_, values_, state);
  const int64_t R = a.R, D = a.D, M = a.M;
  const Order tensors = given_order(op, given, a.values.numel(), a.N, D);
  const FeatureOrder order = tensors.view();
  dispatch_floating(op, "weight", weight, [&](auto t) {
    using T = decltype(t);
    // Reading and writing the row, its moments: as much as a dozen entries of grad, which is in the cache.
    parallel_features<T>(order, 12, R, M, [&](auto isa, int64_t begin, int64_t end) {
      Array<T> scratch(M);
      for (int64_t r = 0; r < R; ++r)
        for (int64_t u = begin; u < end; ++u) {
          sparse_linear_grad_row<decltype(isa)>(pointer<T>(a.values), order, u, pointer<T>(a.grad) + r * M,
                                                R * M, scratch.data(), M);
          const int64_t row = r * D + order.features[u];
          f(isa, RowStep<T>{mutable_pointer<T>(weight), &row, scratch.data(), R * D, M});
        }
    });
  });
}

void sparse_linear_adam_cpu(Tensor weight, Tensor exp_avg, Tensor exp_avg_sq, const Tensor& grad,
                            const Tensor& values, std::vector<Tensor> order, double step_size, double beta1,
                            double beta2, double eps) {
  sparse_linear_step("sparse_linear_adam", weight, {exp_avg, exp_avg_sq}, grad, values, order,
                     [&](auto isa, const auto& row) {
                       using T = std::decay_t<decltype(*row.parameter)>;
                       sparse_adam<decltype(isa), T>(row, mutable_pointer<T>(exp_avg),
                                                     mutable_pointer<T>(exp_avg_sq), step_size, beta1, beta2,
                                                     eps, 0, 1);
                     });
}

void sparse_linear_adagrad_cpu(Tensor weight, Tensor sum, const Tensor& grad, const Tensor& values,
                               std::vector<Tensor> order, double lr, double eps) {
  sparse_linear_step("sparse_linear_adagrad", weight, {sum}, grad, values, order,
                     [&](auto isa, const auto& row) {
                       using T = std::decay_t<decltype(*row.parameter)>;
                       sparse_adagrad<decltype(isa), T>(row, mutable_pointer<T>(sum), lr, eps, 0, 1);
                     });
}

}  // namespace
}  // namespace mach

STABLE_TORCH_LIBRARY_IMPL(mach_ext, CPU, m) {
  MACH_OPERATOR(sparse_adam);
  MACH_OPERATOR(sparse_adagrad);
  MACH_OPERATOR(sparse_linear_adam);
  MACH_OPERATOR(sparse_linear_adagrad);
}
