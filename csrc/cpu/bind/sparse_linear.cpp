#include "../sparse_linear.h"

#include <algorithm>
#include <optional>
#include <tuple>
#include <type_traits>

#include "../check_csr.h"
#include "../sparse_linear_choice.h"
#include "feature_order.h"
#include "tensors.h"

namespace mach {
namespace {

template <class T, class W, class I>
SparseLinear<T, W, I> sparse_linear_params(const Tensor& values, const Tensor& indices,
                                           const Array<int64_t>& indptr, const Tensor& weight) {
  return {pointer<T>(values),
          pointer<I>(indices),
          indptr.data(),
          pointer<W>(weight),
          nullptr,
          indices.numel(),
          weight.dim() == 3 ? weight.size(0) : 1,
          weight.size(-2),
          weight.size(-1),
          false};
}

// f(T(), W(), I()): element types of values (or the gradient), weight and indices.
template <class F>
void dispatch_sparse(const char* op, const Tensor& values, const Tensor& weight, const Tensor& indices,
                     const F& f) {
  dispatch_index(op, "indices", indices, [&](auto index) {
    dispatch_floating(op, "values", values, [&](auto value) {
      using T = decltype(value);
      if (weight.scalar_type() == ScalarType::BFloat16) {
        if constexpr (std::is_same_v<T, float>) return f(value, bf16(), index);
      }
      if (weight.scalar_type() == ScalarType::Char) {
        if constexpr (std::is_same_v<T, float>) return f(value, int8_t(), index);
      }
      check_dtype(op, "weight", weight, values.scalar_type());
      f(value, value, index);
    });
  });
}

Tensor sparse_linear_cpu(const Tensor& values_, const Tensor& indices_, const Tensor& indptr_,
                         const Tensor& weight_, const std::optional<Tensor>& bias_, bool relu,
                         const OptionalOrder& given, bool check) {
  const char* op = "sparse_linear";
  const SparseLinearArguments a = sparse_linear_arguments(op, values_, indices_, weight_, bias_);
  const Tensor &values = a.values, &indices = a.indices, &weight = a.weight;
  const int64_t nnz = a.nnz, R = a.R, D = a.D, M = a.M;
  Array<int64_t> indptr = given_indptr(op, indptr_);
  const int64_t N = static_cast<int64_t>(indptr.size()) - 1;
  std::optional<Order> order;
  if (given) order = given_order(op, *given, nnz, N, D);
  Tensor out = a.stacked ? allocate(values, {N, R, M}) : allocate(values, {N, M});

  dispatch_sparse(op, values, weight, indices, [&](auto t, auto w, auto index) {
    using T = decltype(t);
    if (check) {
      const auto* column = pointer<decltype(index)>(indices);
      const CsrCheck found = check_csr(pointer<T>(values), column, nnz, indptr.data(), N, D);
      MACH_CHECK(found.fault == CsrFault::none, op, ": documents at fault, see check_csr");
    }
    make_safe(indptr, nnz);
    if (out.numel() == 0) return;
    auto params = sparse_linear_params<T, decltype(w), decltype(index)>(values, indices, indptr, weight);
    params.bias = a.bias ? pointer<T>(*a.bias) : nullptr;
    params.relu = relu;
    const int64_t threads = num_threads_for((nnz + N) * R * M);
    // Column bounds on multiples of 16 elements: one cache line of float.
    const auto column = [&](int64_t i, int64_t parts) { return i == parts ? M : M * i / parts / 16 * 16; };
    if (by_feature_pays(params, N, threads, order ? std::optional(order->features.numel()) : std::nullopt)) {
      if (!order) order = sort_by_feature(op, indices, indptr_, params.D);
      const int64_t width = by_feature_width<T>(N);
      return with_isa<T>([&](auto isa) {
        run_tasks(threads, [&](int64_t i) {
          Array<T> scratch(N * width);
          sparse_linear_by_feature<decltype(isa)>(params, order->view(), mutable_pointer<T>(out), N,
                                                  column(i, threads), column(i + 1, threads), scratch.data(),
                                                  width);
        });
      });
    }
    // Threads share the rows, by non-zeros; columns, at least 256 a thread, where rows are too few or one row
    // is most of the work.
    int64_t longest = 0;
    for (int64_t n = 0; n < N; ++n) longest = std::max(longest, indptr[n + 1] - indptr[n]);
    const bool by_rows = N >= threads && longest <= nnz / threads;
    const int64_t column_parts = by_rows ? 1 : std::min(threads, std::max<int64_t>(1, M / 256));
    const int64_t row_parts = std::max<int64_t>(1, threads / column_parts);
    const auto row = [&](int64_t i) { return balanced_bound(indptr.data(), N, row_parts, i); };
    with_isa<T>([&](auto isa) {
      run_tasks(column_parts * row_parts, [&](int64_t task) {
        const int64_t c = task % column_parts, n = task / column_parts;
        sparse_linear<decltype(isa)>(params, mutable_pointer<T>(out), row(n), row(n + 1),
                                     column(c, column_parts), column(c + 1, column_parts));
      });
    });
  });
  return out;
}

Tensor sparse_linear_grad_values_cpu(const Tensor& grad_, const Tensor& indices_, const Tensor& indptr_,
                                     const Tensor& weight_) {
  const char* op = "sparse_linear_grad_values";
  const Tensor grad = as_contiguous(grad_), indices = as_contiguous(indices_),
               weight = as_contiguous(weight_);
  const int64_t nnz = indices.numel();
  const Array<int64_t> indptr = safe_indptr(op, indptr_, nnz);
  const int64_t N = static_cast<int64_t>(indptr.size()) - 1, R = weight.size(0), M = weight.size(2);
  check_shape(op, "grad", grad, {N, R, M});
  Tensor out = zeros(grad, {nnz});
  dispatch_sparse(op, grad, weight, indices, [&](auto t, auto w, auto index) {
    using T = decltype(t);
    const auto params = sparse_linear_params<T, decltype(w), decltype(index)>(grad, indices, indptr, weight);
    with_isa<T>([&](auto isa) {
      parallel_balanced(indptr.data(), N, nnz * R * M, [&](int64_t begin, int64_t end) {
        sparse_linear_grad_values<decltype(isa)>(params, pointer<T>(grad), mutable_pointer<T>(out), begin,
                                                 end);
      });
    });
  });
  return out;
}

// The order for a weight gradient, given or computed, after the checks that go with it.
Order gradient_order(const char* op, const Tensor& grad, const Tensor& values, const Tensor& indices,
                     const Tensor& indptr, int64_t num_features, const OptionalOrder& order) {
  check_weight_gradient(op, grad, values, indices, indptr);
  if (order) return given_order(op, *order, values.numel(), grad.size(0), num_features);
  return sort_by_feature(op, indices, indptr, num_features);
}

// Weight gradient of repetition r, features[u], into destination(r, u) (M values).
template <class T, class F>
void sparse_linear_grad_each_row(const Tensor& grad, const Tensor& values, const FeatureOrder& order,
                                 const F& destination) {
  const int64_t R = grad.size(1), M = grad.size(2);
  parallel_features<T>(order, 1, R, M, [&](auto isa, int64_t begin, int64_t end) {
    for (int64_t r = 0; r < R; ++r)
      for (int64_t u = begin; u < end; ++u)
        sparse_linear_grad_row<decltype(isa)>(pointer<T>(values), order, u, pointer<T>(grad) + r * M, R * M,
                                              destination(r, u), M);
  });
}

Tensor sparse_linear_grad_weight_cpu(const Tensor& grad_, const Tensor& values_, const Tensor& indices,
                                     const Tensor& indptr, int64_t num_features, const OptionalOrder& given) {
  const char* op = "sparse_linear_grad_weight";
  const Tensor grad = as_contiguous(grad_), values = as_contiguous(values_);
  const Order tensors = gradient_order(op, grad, values, indices, indptr, num_features, given);
  const FeatureOrder order = tensors.view();
  const int64_t R = grad.size(1), M = grad.size(2);
  Tensor out = zeros(grad, {R, num_features, M});
  dispatch_floating(op, "grad", grad, [&](auto t) {
    using T = decltype(t);
    T* base = mutable_pointer<T>(out);
    sparse_linear_grad_each_row<T>(grad, values, order, [&](int64_t r, int64_t u) {
      return base + (r * num_features + order.features[u]) * M;
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> sparse_linear_grad_rows_cpu(const Tensor& grad_, const Tensor& values_,
                                                       const Tensor& indices, const Tensor& indptr,
                                                       int64_t num_features, const OptionalOrder& given) {
  const char* op = "sparse_linear_grad_rows";
  const Tensor grad = as_contiguous(grad_), values = as_contiguous(values_);
  const Order tensors = gradient_order(op, grad, values, indices, indptr, num_features, given);
  const FeatureOrder order = tensors.view();
  const int64_t R = grad.size(1), M = grad.size(2), U = order.U;
  Tensor rows = allocate(grad, {U}, ScalarType::Long);
  std::copy_n(order.features, U, mutable_pointer<int64_t>(rows));
  Tensor out = allocate(grad, {R, U, M});
  dispatch_floating(op, "grad", grad, [&](auto t) {
    using T = decltype(t);
    T* base = mutable_pointer<T>(out);
    sparse_linear_grad_each_row<T>(grad, values, order,
                                   [&](int64_t r, int64_t u) { return base + (r * U + u) * M; });
  });
  return {rows, out};
}

}  // namespace
}  // namespace mach

STABLE_TORCH_LIBRARY_IMPL(mach_ext, CPU, m) {
  MACH_OPERATOR(sparse_linear);
  MACH_OPERATOR(sparse_linear_grad_values);
  MACH_OPERATOR(sparse_linear_grad_weight);
  MACH_OPERATOR(sparse_linear_grad_rows);
}
