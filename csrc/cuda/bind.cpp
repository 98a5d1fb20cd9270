// CUDA operators: tensors -> params structs, device guard, current stream. Kernels are in <op>.cu.
#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../check.h"
#include "bucket_bce.cuh"
#include "csr.cuh"
#include "label_index.cuh"
#include "label_logits.cuh"
#include "merge.cuh"
#include "merge_scan.cuh"
#include "merge_topk.cuh"
#include "runtime.h"
#include "signs.cuh"
#include "sparse_linear.cuh"
#include "sparse_optim.cuh"

namespace mach {
namespace {

// Not initialised, on the device of `like`.
Tensor allocate(const Tensor& like, std::initializer_list<int64_t> size,
                std::optional<ScalarType> type = std::nullopt) {
  return torch::stable::new_empty(like, size, type.value_or(like.scalar_type()));
}

// Values and where they came from, equal values in their order.
std::tuple<Tensor, Tensor> stable_sort(const Tensor& t, bool descending) {
  using torch::stable::detail::from;
  StableIValue stack[]{from(t), from(std::optional<bool>(true)), from(int64_t{-1}), from(descending)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack, TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

// ----------------------------------------------------------------------- sparse_linear, its steps, the loss

using torch::stable::new_empty;
using torch::stable::new_zeros;
using OptionalOrder = std::optional<std::vector<Tensor>>;

IndexArray index_array(const char* op, const char* name, const Tensor& t) {
  IndexArray array{};
  dispatch_index(op, name, t, [&](auto index) { array = {t.const_data_ptr(), sizeof(index) == 8}; });
  return array;
}

Rows rows_of(const char* op, const char* name, const Tensor& indptr, int64_t nnz) {
  MACH_CHECK(indptr.dim() == 1 && indptr.size(0) >= 1, op, ": ", name, " must be 1-D with N + 1 entries");
  return {index_array(op, name, indptr), indptr.size(0) - 1, nnz};
}

// Kernels follow a pointer without asking where it leads.
void check_device(const char* op, const Tensor& like, std::initializer_list<Tensor> tensors) {
  for (const Tensor& t : tensors)
    MACH_CHECK(t.is_cuda() == like.is_cuda() && t.get_device_index() == like.get_device_index(), op,
               ": all tensors must be on one device");
}

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
  const Tensor values = as_contiguous(values_), indices = as_contiguous(indices_),
               indptr = as_contiguous(indptr_), weight = as_contiguous(weight_);
  check_device(op, values, {indices, indptr, weight});
  const int64_t nnz = values.numel();
  check_shape(op, "values", values, {nnz});
  check_shape(op, "indices", indices, {nnz});
  const bool stacked = weight.dim() == 3;
  MACH_CHECK(stacked || weight.dim() == 2, op, ": weight must be [R, D, M] or [D, M]");
  const int64_t R = stacked ? weight.size(0) : 1, D = weight.size(-2), M = weight.size(-1);
  const Rows rows = rows_of(op, "indptr", indptr, nnz);
  std::optional<Tensor> bias;
  if (bias_.has_value()) {
    bias = as_contiguous(*bias_);
    check_device(op, values, {*bias});
    stacked ? check_shape(op, "bias", *bias, {R, M}) : check_shape(op, "bias", *bias, {M});
    check_dtype(op, "bias", *bias, values.scalar_type());
  }
  Tensor out = stacked ? new_empty(values, {rows.N, R, M}) : new_empty(values, {rows.N, M});
  dispatch_weight(op, values, weight, [&](auto t, auto w) {
    using T = decltype(t);
    using W = decltype(w);
    check_cuda(launch_sparse_linear(
        SparseLinearParams<T, W>{pointer<T>(values), index_array(op, "indices", indices), rows,
                                 pointer<W>(weight), bias ? pointer<T>(*bias) : nullptr, R, D, M, relu,
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
  Tensor out = new_empty(grad, {nnz});
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

// A feature order on the device (FeatureGroups in csr.cuh).
struct Groups {
  Tensor features, offsets, positions, documents;
  std::optional<Tensor> counts;  // [2]: U, E; then the others are as long as these could have been

  FeatureGroups view() const {
    return {pointer<int64_t>(features),
            pointer<int64_t>(offsets),
            pointer<int64_t>(positions),
            pointer<int64_t>(documents),
            features.numel(),
            positions.numel(),
            counts ? pointer<int64_t>(*counts) : nullptr};
  }
};

Tensor running_sum(const Tensor& t) {
  using torch::stable::detail::from;
  StableIValue stack[]{from(t), from(int64_t{0}), from(std::optional<ScalarType>())};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::cumsum", "", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Groups of `count` entries by key; those of key `none`, the largest, are left out. fill(Key(), keys,
// documents) launches what writes these two. Asks the device nothing.
template <class F>
Groups group(const Tensor& like, int64_t count, int64_t none, const F& fill) {
  const auto empty = [&](int64_t n) { return new_empty(like, {n}, ScalarType::Long); };
  Groups groups{empty(count), empty(count + 1), empty(count), empty(count), empty(2)};
  if (count == 0) {
    torch::stable::zero_(groups.offsets);
    torch::stable::zero_(*groups.counts);
    return groups;
  }
  const auto run = [&](auto key) {
    using Key = decltype(key);
    const cudaStream_t stream = current_stream(like);
    const Tensor keys = new_empty(like, {count}, sizeof(Key) == 4 ? ScalarType::Int : ScalarType::Long);
    const Tensor documents = empty(count), heads = empty(count);
    fill(key, mutable_pointer<Key>(keys), mutable_pointer<int64_t>(documents));
    const auto [sorted, entries] = stable_sort(keys, false);
    check_cuda(launch_group_heads(GroupHeadsParams<Key>{pointer<Key>(sorted), count, static_cast<Key>(none),
                                                        mutable_pointer<int64_t>(heads)},
                                  stream));
    const Tensor ranks = running_sum(heads);
    check_cuda(launch_group_write(
        GroupWriteParams<Key>{
            pointer<Key>(sorted), pointer<int64_t>(entries), pointer<int64_t>(ranks),
            pointer<int64_t>(documents), count, static_cast<Key>(none),
            mutable_pointer<int64_t>(groups.features), mutable_pointer<int64_t>(groups.offsets),
            mutable_pointer<int64_t>(groups.positions), mutable_pointer<int64_t>(groups.documents),
            mutable_pointer<int64_t>(*groups.counts)},
        stream));
  };
  none <= INT32_MAX ? run(int32_t()) : run(int64_t());
  return groups;
}

Groups group_by_feature(const char* op, const Tensor& indices_, const Tensor& indptr_, int64_t num_features) {
  const Tensor indices = as_contiguous(indices_), indptr = as_contiguous(indptr_);
  check_device(op, indices, {indptr});
  const int64_t nnz = indices.numel();
  const Rows rows = rows_of(op, "indptr", indptr, nnz);
  return group(indices, nnz, num_features, [&](auto key, auto* keys, int64_t* documents) {
    using Key = decltype(key);
    check_cuda(launch_feature_keys(FeatureKeysParams<Key>{index_array(op, "indices", indices), rows,
                                                          static_cast<Key>(num_features), keys, documents},
                                   current_stream(indices)));
  });
}

// The same with U and E known: waits for the device.
Groups sized_groups(Groups groups) {
  const Tensor counts = torch::stable::to(*groups.counts, torch::stable::Device(torch::headeronly::kCPU));
  const int64_t U = pointer<int64_t>(counts)[0], E = pointer<int64_t>(counts)[1];
  const auto first = [](Tensor& t, int64_t length) { t = torch::stable::narrow(t, 0, 0, length); };
  first(groups.features, U);
  first(groups.offsets, U + 1);
  first(groups.positions, E);
  first(groups.documents, E);
  groups.counts.reset();
  return groups;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> feature_order_cuda(const Tensor& indices, const Tensor& indptr,
                                                              int64_t num_features) {
  const DeviceGuard guard(indices);
  const Groups groups = sized_groups(group_by_feature("feature_order", indices, indptr, num_features));
  return {groups.features, groups.offsets, groups.positions, groups.documents};
}

// An order that came as an argument. What is in it is not looked at: kernels pass over what is out of range.
Groups given_groups(const char* op, const Tensor& like, const std::vector<Tensor>& order) {
  MACH_CHECK(order.size() == 4, op, ": order must be (features, offsets, positions, documents)");
  for (const Tensor& t : order) check_dtype(op, "order", t, ScalarType::Long);
  Groups groups{as_contiguous(order[0]), as_contiguous(order[1]), as_contiguous(order[2]),
                as_contiguous(order[3]), std::nullopt};
  check_device(op, like, {groups.features, groups.offsets, groups.positions, groups.documents});
  check_shape(op, "order's offsets", groups.offsets, {groups.features.numel() + 1});
  check_shape(op, "order's documents", groups.documents, {groups.positions.numel()});
  return groups;
}

// The checks of a weight gradient, and its order, given or made; `sized`: with U known.
Groups gradient_groups(const char* op, const Tensor& grad, const Tensor& values, const Tensor& indices,
                       const Tensor& indptr, int64_t num_features, const OptionalOrder& order, bool sized) {
  check_device(op, grad, {values, indices, indptr});
  check_shape(op, "indices", indices, {values.numel()});
  check_dtype(op, "values", values, grad.scalar_type());
  MACH_CHECK(indptr.dim() == 1 && indptr.size(0) >= 1, op, ": indptr must be 1-D with N + 1 entries");
  MACH_CHECK(grad.dim() == 3 && grad.size(0) == indptr.size(0) - 1, op, ": grad must be [N, R, M]");
  if (order) return given_groups(op, grad, *order);
  const Groups groups = group_by_feature(op, indices, indptr, num_features);
  return sized ? sized_groups(groups) : groups;
}

template <class T>
FeatureRowsParams<T> feature_rows_params(const Tensor& values, const Groups& groups, const Tensor& grad,
                                         int64_t D, GradientTo to, const Tensor& out) {
  return {pointer<T>(values),
          values.numel(),
          groups.view(),
          pointer<T>(grad),
          grad.size(0),
          grad.size(1),
          D,
          grad.size(2),
          to,
          mutable_pointer<T>(out),
          Step<T>{},
          1,
          nullptr};
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
  Tensor out = new_empty(grad, {grad.size(1), features.numel(), grad.size(2)});
  dispatch_floating(op, "grad", grad, [&](auto t) {
    check_cuda(launch_feature_rows(
        feature_rows_params<decltype(t)>(values, groups, grad, num_features, GradientTo::rows, out),
        current_stream(grad)));
  });
  return {features, out};
}

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

// Contiguous arguments of label_logits and its gradients, checked.
struct LabelLogitsArguments {
  Tensor hidden, weight, buckets, labels;
  bool shared;
  int64_t N, m, R, H, B, L;

  Tensor checked_grad(const char* op, const Tensor& grad) const {
    check_device(op, hidden, {grad});
    return checked(op, "grad", grad, {N, m, R}, hidden.scalar_type());
  }

  template <class T>
  LabelLogitsParams<T> params(const T* bias = nullptr) const {
    return {pointer<T>(hidden),
            shared,
            pointer<T>(weight),
            bias,
            pointer<int32_t>(buckets),
            pointer<int64_t>(labels),
            N,
            m,
            R,
            H,
            B,
            L};
  }
};

LabelLogitsArguments label_logits_arguments(const char* op, const Tensor& hidden, const Tensor& weight,
                                            const Tensor& buckets, const Tensor& labels) {
  MACH_CHECK(weight.dim() == 3 && labels.dim() == 2 && buckets.dim() == 2, op,
             ": weight must be [R, H, B], buckets [R, L], labels [N, m]");
  check_device(op, hidden, {weight, buckets, labels});
  const int64_t N = labels.size(0), R = weight.size(0), H = weight.size(1);
  const bool shared = hidden.dim() != 3;
  shared ? check_shape(op, "hidden", hidden, {N, H}) : check_shape(op, "hidden", hidden, {N, R, H});
  check_dtype(op, "weight", weight, hidden.scalar_type());
  check_dtype(op, "buckets", buckets, ScalarType::Int);
  check_dtype(op, "labels", labels, ScalarType::Long);
  check_shape(op, "buckets", buckets, {R, buckets.size(1)});
  return {as_contiguous(hidden),
          as_contiguous(weight),
          as_contiguous(buckets),
          as_contiguous(labels),
          shared,
          N,
          labels.size(1),
          R,
          H,
          weight.size(2),
          buckets.size(1)};
}

Tensor label_logits_cuda(const Tensor& hidden, const Tensor& weight, const std::optional<Tensor>& bias_,
                         const Tensor& buckets, const Tensor& labels) {
  const char* op = "label_logits";
  const DeviceGuard guard(hidden);
  const LabelLogitsArguments a = label_logits_arguments(op, hidden, weight, buckets, labels);
  std::optional<Tensor> bias;
  if (bias_.has_value()) {
    check_device(op, hidden, {*bias_});
    bias = checked(op, "bias", *bias_, {a.R, a.B}, hidden.scalar_type());
  }
  Tensor out = new_empty(hidden, {a.N, a.m, a.R});
  dispatch_floating(op, "hidden", hidden, [&](auto t) {
    using T = decltype(t);
    check_cuda(launch_label_logits(a.params<T>(bias ? pointer<T>(*bias) : nullptr), mutable_pointer<T>(out),
                                   current_stream(hidden)));
  });
  return out;
}

Tensor label_logits_grad_hidden_cuda(const Tensor& grad_, const Tensor& hidden, const Tensor& weight,
                                     const Tensor& buckets, const Tensor& labels) {
  const char* op = "label_logits_grad_hidden";
  const DeviceGuard guard(hidden);
  const LabelLogitsArguments a = label_logits_arguments(op, hidden, weight, buckets, labels);
  const Tensor grad = a.checked_grad(op, grad_);
  Tensor out = new_empty(hidden, a.hidden.sizes());
  dispatch_floating(op, "hidden", hidden, [&](auto t) {
    using T = decltype(t);
    check_cuda(launch_label_logits_grad_hidden(a.params<T>(), pointer<T>(grad), mutable_pointer<T>(out),
                                               current_stream(hidden)));
  });
  return out;
}

std::tuple<Tensor, Tensor> label_logits_grad_weight_cuda(const Tensor& grad_, const Tensor& hidden,
                                                         const Tensor& weight, const Tensor& buckets,
                                                         const Tensor& labels) {
  const char* op = "label_logits_grad_weight";
  const DeviceGuard guard(hidden);
  const LabelLogitsArguments a = label_logits_arguments(op, hidden, weight, buckets, labels);
  const Tensor grad = a.checked_grad(op, grad_);
  Tensor grad_weight = new_zeros(hidden, {a.R, a.H, a.B}), grad_bias = new_zeros(hidden, {a.R, a.B});
  const Groups groups =
      group(hidden, a.N * a.m * a.R, a.R * a.B, [&](auto key, auto* keys, int64_t* documents) {
        check_cuda(launch_label_keys(
            LabelKeysParams<decltype(key)>{a.shared, pointer<int32_t>(a.buckets), pointer<int64_t>(a.labels),
                                           a.N, a.m, a.R, a.B, a.L, keys, documents},
            current_stream(hidden)));
      });
  dispatch_floating(op, "hidden", hidden, [&](auto t) {
    using T = decltype(t);
    FeatureRowsParams<T> params{};
    params.values = pointer<T>(grad);
    params.nnz = grad.numel();
    params.groups = groups.view();
    params.grad = pointer<T>(a.hidden);
    params.N = a.shared ? a.N : a.N * a.R;
    params.R = 1;
    params.D = a.R * a.B;
    params.M = a.H;
    params.to = GradientTo::columns;
    params.out = mutable_pointer<T>(grad_weight);
    params.B = a.B;
    params.sums = mutable_pointer<T>(grad_bias);
    check_cuda(launch_feature_rows(params, current_stream(hidden)));
  });
  return {grad_weight, grad_bias};
}

Tensor signs_cuda(Tensor gradient, bool nonnegative) {
  const char* op = "signs";
  const DeviceGuard guard(gradient);
  check_rows(op, "gradient", gradient, "[N, T]");
  const int64_t N = gradient.size(0), columns = gradient.size(1), stride = N ? gradient.stride(0) : columns;
  Tensor counts = allocate(gradient, {N}, ScalarType::Long);
  dispatch_floating(op, "gradient", gradient, [&](auto t) {
    using T = decltype(t);
    check_cuda(launch_signs(SignsParams<T>{mutable_pointer<T>(gradient), N, stride, columns, nonnegative,
                                           mutable_pointer<int64_t>(counts)},
                            current_stream(gradient)));
  });
  return counts;
}

Tensor bucket_bce_cuda(Tensor logits, const Tensor& buckets_, const Tensor& label_indices_,
                       const Tensor& label_indptr_, double scale, bool gradient) {
  const char* op = "bucket_bce";
  check_rows(op, "logits", logits, "[N, B]");
  const DeviceGuard guard(logits);
  const int64_t N = logits.size(0), B = logits.size(1);
  check_dtype(op, "buckets", buckets_, ScalarType::Int);
  check_dtype(op, "label_indices", label_indices_, ScalarType::Long);
  const Tensor buckets = as_contiguous(buckets_), label_indices = as_contiguous(label_indices_),
               label_indptr = as_contiguous(label_indptr_);
  check_device(op, logits, {buckets, label_indices, label_indptr});
  const Rows labels = rows_of(op, "label_indptr", label_indptr, label_indices.numel());
  MACH_CHECK(labels.N == N, op, ": label_indptr must have N + 1 entries");
  Tensor loss = new_empty(logits, {N}, ScalarType::Double);
  dispatch_floating(op, "logits", logits, [&](auto t) {
    using T = decltype(t);
    check_cuda(launch_bucket_bce(
        BucketBceParams<T>{mutable_pointer<T>(logits), N ? logits.stride(0) : B, B, pointer<int32_t>(buckets),
                           buckets.numel(), pointer<int64_t>(label_indices), labels, static_cast<T>(scale),
                           gradient, mutable_pointer<double>(loss)},
        current_stream(logits)));
  });
  return loss;
}

// ------------------------------------------------------------------------------------------------ merge

struct MergeArguments {
  Tensor scores, buckets;
  Merge merge;
  int64_t N() const { return scores.size(0); }
  int64_t R() const { return scores.size(1); }
  int64_t B() const { return scores.size(2); }
  int64_t L() const { return buckets.size(1); }

  template <class T>
  MergeInput<T> input() const {
    return {pointer<T>(scores),
            scores.stride(0),
            scores.stride(1),
            pointer<int32_t>(buckets),
            N(),
            R(),
            B(),
            L(),
            merge};
  }
};

// scores may be strided (as a transposed [R, N, B] is) as long as the buckets of a repetition are adjacent.
MergeArguments merge_arguments(const char* op, const Tensor& scores, const Tensor& buckets,
                               const std::string& merge) {
  MACH_CHECK(scores.dim() == 3 && scores.size(1) >= 1, op, ": scores must be [N, R, B] with R >= 1");
  check_dtype(op, "buckets", buckets, ScalarType::Int);
  check_shape(op, "buckets", buckets, {scores.size(1), buckets.size(1)});
  check_device(op, scores, {buckets});
  const bool adjacent = scores.size(2) <= 1 || scores.stride(2) == 1;
  return {adjacent ? scores : as_contiguous(scores), as_contiguous(buckets), parse_merge(op, merge)};
}

Tensor checked_labels(const char* op, const Tensor& labels, const Tensor& scores) {
  check_dtype(op, "labels", labels, ScalarType::Long);
  MACH_CHECK(labels.dim() == 2 && labels.size(0) == scores.size(0), op, ": labels must be [N, m]");
  check_device(op, scores, {labels});
  return as_contiguous(labels);
}

Tensor merge_scores_cuda(const Tensor& scores, const Tensor& buckets, const Tensor& labels_,
                         const std::string& merge) {
  const char* op = "merge_scores";
  const DeviceGuard guard(scores);
  const MergeArguments a = merge_arguments(op, scores, buckets, merge);
  const Tensor labels = checked_labels(op, labels_, scores);
  Tensor out = allocate(scores, {a.N(), labels.size(1)});
  dispatch_floating(op, "scores", scores, [&](auto t) {
    using T = decltype(t);
    check_cuda(launch_merge_scores(MergeScoresParams<T>{a.input<T>(), pointer<int64_t>(labels),
                                                        labels.size(1), mutable_pointer<T>(out), nullptr},
                                   current_stream(scores)));
  });
  return out;
}

Tensor merge_scores_grad_cuda(const Tensor& grad_, const Tensor& scores, const Tensor& buckets,
                              const Tensor& labels_, const std::string& merge) {
  const char* op = "merge_scores_grad";
  const DeviceGuard guard(scores);
  const MergeArguments a = merge_arguments(op, scores, buckets, merge);
  const Tensor labels = checked_labels(op, labels_, scores);
  const int64_t m = labels.size(1);
  check_device(op, scores, {grad_});
  const Tensor grad = checked(op, "grad", grad_, {a.N(), m}, scores.scalar_type());
  Tensor out = new_zeros(scores, {a.N(), a.R(), a.B()});
  const Tensor chosen = allocate(scores, {a.N(), m, 2}, ScalarType::Int);
  dispatch_floating(op, "scores", scores, [&](auto t) {
    using T = decltype(t);
    check_cuda(launch_merge_scores_grad(
        MergeScoresGradParams<T>{a.input<T>(), pointer<int64_t>(labels), m, pointer<T>(grad),
                                 mutable_pointer<int2>(chosen), mutable_pointer<T>(out)},
        current_stream(scores)));
  });
  return out;
}

Tensor gather(const Tensor& t, const Tensor& index) {
  using torch::stable::detail::from;
  StableIValue stack[]{from(t), from(int64_t{-1}), from(index), from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::gather", "", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Built once for a hash, so it may wait for the device. Codes are [L, R] as seen, [R, L padded] in memory.
std::tuple<Tensor, Tensor, Tensor> label_index_cuda(const Tensor& buckets_, int64_t num_buckets) {
  const char* op = "label_index";
  MACH_CHECK(buckets_.dim() == 2, op, ": buckets must be [R, L]");
  check_dtype(op, "buckets", buckets_, ScalarType::Int);
  const int64_t R = buckets_.size(0), L = buckets_.size(1), B = num_buckets;
  MACH_CHECK(B >= 1 && B <= kMaxCodes && L <= INT32_MAX, op, ": needs 1 <= B <= ", kMaxCodes,
             " and L < 2^31, got B=", B, ", L=", L);
  const DeviceGuard guard(buckets_);
  const cudaStream_t stream = current_stream(buckets_);
  const Tensor buckets = as_contiguous(buckets_);
  const int64_t stride = padded_labels(L);
  const Tensor codes = allocate(buckets, {R, stride}, ScalarType::UInt16);
  const Tensor faults = new_zeros(buckets, {1});
  check_cuda(launch_label_codes({pointer<int32_t>(buckets), R, B, L, mutable_pointer<uint16_t>(codes), stride,
                                 mutable_pointer<uint32_t>(faults)},
                                stream));
  uint32_t fault = 0;
  check_cuda(cudaMemcpyAsync(&fault, faults.const_data_ptr(), sizeof fault, cudaMemcpyDeviceToHost, stream));
  check_cuda(cudaStreamSynchronize(stream));
  MACH_CHECK(fault == 0, op, ": buckets must be in [0, B=", B, ")");
  Tensor starts = allocate(buckets, {R, B + 1}), labels = allocate(buckets, {R, L});
  for (int64_t r = 0; r < R; ++r) {
    const auto [sorted, from] = stable_sort(torch::stable::select(buckets, 0, r), false);
    check_cuda(launch_label_lists(
        {pointer<int32_t>(sorted), pointer<int64_t>(from), B, L,
         mutable_pointer<int32_t>(starts) + r * (B + 1), mutable_pointer<int32_t>(labels) + r * L},
        stream));
  }
  Tensor seen = torch::stable::transpose(codes, 0, 1);
  return {torch::stable::narrow(seen, 0, 0, L), starts, labels};
}

enum class Path { automatic, direct, scan, lists };

Path parse_path(const char* op, const std::string& path) {
  if (path == "direct") return Path::direct;
  if (path == "scan") return Path::scan;
  if (path == "lists") return Path::lists;
  MACH_CHECK(path == "auto", op, ": path must be auto, direct, scan or lists, got ", path);
  return Path::automatic;
}

constexpr int64_t kScanFrom = 1 << 16;   // L * R: less is not worth the scan's launches
constexpr int64_t kListsFrom = 1 << 28;  // rows of the scan, for 16 documents at least: less is not worth it
constexpr int64_t kListsUpTo = 32;       // k: more labels don't stand out by few buckets
constexpr int64_t kScanDocuments = 256;  // that are scanned together: their table is R * B bytes each

// Elements of the memory that the tensor lies in, from its first one on.
int64_t elements_behind(const Tensor& t) {
  int64_t bytes = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &bytes));
  return bytes / static_cast<int64_t>(t.element_size()) - t.storage_offset();
}

// Scans the labels of a few hundred documents at a time, then takes the best of what is left.
void scan_topk(const MergeArguments& a, const Tensor& codes_, const Tensor& list_starts,
               const Tensor& list_labels, const MergeTopKParams<float>& all, Path path, cudaStream_t stream) {
  const int64_t N = a.N(), R = a.R(), B = a.B(), L = a.L(), k = all.k;
  Tensor codes = codes_;
  int64_t stride = codes.stride(1);
  // Not as label_index_cuda leaves them: eight labels' codes are one load of 16 bytes, those behind the last
  // label too.
  if (codes.stride(0) != 1 || stride % 8 != 0 || stride < L ||
      reinterpret_cast<uintptr_t>(codes.const_data_ptr()) % 16 != 0 ||
      elements_behind(codes) < (R - 1) * stride + padded_labels(L)) {
    stride = padded_labels(L);
    codes = allocate(codes, {R, stride});
    const Tensor faults = allocate(a.buckets, {1});
    check_cuda(launch_label_codes({pointer<int32_t>(a.buckets), R, B, L, mutable_pointer<uint16_t>(codes),
                                   stride, mutable_pointer<uint32_t>(faults)},
                                  stream));
  }
  Lists lists = Lists::none;
  if (path == Path::automatic && k <= kListsUpTo && L * R >= kListsFrom / std::max<int64_t>(N, 16))
    lists = Lists::likely;
  if (path == Path::lists) lists = Lists::all;
  if (k > kMaxListsK || a.merge != Merge::mean) lists = Lists::none;
  const int64_t parts = (N + kScanDocuments - 1) / kScanDocuments, size = (N + parts - 1) / parts;
  const Tensor scratch = allocate(codes, {scan_scratch_bytes(size, R, B, L, k)}, ScalarType::Byte);
  for (int64_t begin = 0; begin < N; begin += size) {
    MergeTopKParams<float> some = all;
    some.merge.N = std::min(size, N - begin);
    some.merge.scores += begin * all.merge.document_stride;
    some.values += begin * k;
    some.labels += begin * k;
    if (all.trace) some.trace += begin * kTraceColumns;
    check_cuda(launch_merge_scan(
        {some.merge, k, lists, pointer<uint16_t>(codes), stride, pointer<int32_t>(list_starts),
         pointer<int32_t>(list_labels), scratch.mutable_data_ptr()},
        &some.candidates, stream));
    check_cuda(launch_merge_topk(some, stream));
  }
}

std::tuple<Tensor, Tensor> merge_topk_cuda(const Tensor& scores, const Tensor& buckets,
                                           const std::optional<Tensor>& codes,
                                           const std::optional<Tensor>& list_starts,
                                           const std::optional<Tensor>& list_labels, int64_t k,
                                           const std::string& merge, const std::string& path_,
                                           const std::optional<Tensor>& trace) {
  const char* op = "merge_topk";
  const DeviceGuard guard(scores);
  const cudaStream_t stream = current_stream(scores);
  const MergeArguments a = merge_arguments(op, scores, buckets, merge);
  const int64_t N = a.N(), R = a.R(), B = a.B(), L = a.L();
  MACH_CHECK(k >= 0 && k <= L && L <= INT32_MAX, op, ": needs 0 <= k <= L < 2^31, got k=", k, ", L=", L);
  MACH_CHECK(B >= 1 || L == 0, op, ": scores must have B >= 1 buckets");
  if (codes) {
    check_label_index(op, *codes, list_starts, list_labels, R, L, B);
    check_device(op, scores, {*codes, *list_starts, *list_labels});
    MACH_CHECK(list_starts->is_contiguous() && list_labels->is_contiguous(), op,
               ": list_starts and list_labels must be contiguous");
  }
  if (trace) {
    check_shape(op, "trace", *trace, {N, kTraceColumns});
    check_dtype(op, "trace", *trace, ScalarType::Long);
    check_device(op, scores, {*trace});
    MACH_CHECK(trace->is_contiguous(), op, ": trace must be contiguous");
    Tensor rows = *trace;
    torch::stable::zero_(rows);
  }
  const Path path = parse_path(op, path_);
  Tensor values = allocate(scores, {N, k}), labels = allocate(scores, {N, k}, ScalarType::Long);
  if (values.numel() == 0) return {values, labels};
  dispatch_floating(op, "scores", scores, [&](auto t) {
    using T = decltype(t);
    MergeTopKParams<T> params{a.input<T>(),
                              k,
                              {},
                              1,
                              nullptr,
                              mutable_pointer<T>(values),
                              mutable_pointer<int64_t>(labels),
                              trace ? mutable_pointer<int64_t>(*trace) : nullptr};
    if constexpr (std::is_same_v<T, float>) {
      const bool possible = codes && k <= kMaxScanK && R <= kMaxScanRepetitions;
      if (possible && path != Path::direct && (path != Path::automatic || L * R >= kScanFrom))
        return scan_topk(a, *codes, *list_starts, *list_labels, params, path, stream);
    }
    params.blocks = blocks_per_document(N, L);
    std::optional<Tensor> shared;
    if (params.blocks > 1) {
      shared = new_zeros(scores, {shared_bytes(N)}, ScalarType::Byte);
      params.shared = shared->mutable_data_ptr();
    }
    check_cuda(launch_merge_topk(params, stream));
    if (k <= kMaxOrdered) return;
    // The library puts many labels in order: by label, then by key.
    const Tensor ascending = std::get<0>(stable_sort(labels, false));
    const Tensor ranks = allocate(labels, {N, k});
    MergeScoresParams<T> keys{params.merge, pointer<int64_t>(ascending), k, nullptr,
                              mutable_pointer<int64_t>(ranks)};
    check_cuda(launch_merge_scores(keys, stream));
    labels = gather(ascending, std::get<1>(stable_sort(ranks, true)));
    keys.labels = pointer<int64_t>(labels);
    keys.out = mutable_pointer<T>(values);
    check_cuda(launch_merge_scores(keys, stream));
  });
  return {values, labels};
}

}  // namespace
}  // namespace mach

MACH_CUDA_LIBRARY_IMPL(m) {
  m.impl("feature_order", TORCH_BOX(&mach::feature_order_cuda));
  m.impl("sparse_linear", TORCH_BOX(&mach::sparse_linear_cuda));
  m.impl("sparse_linear_grad_values", TORCH_BOX(&mach::sparse_linear_grad_values_cuda));
  m.impl("sparse_linear_grad_weight", TORCH_BOX(&mach::sparse_linear_grad_weight_cuda));
  m.impl("sparse_linear_grad_rows", TORCH_BOX(&mach::sparse_linear_grad_rows_cuda));
  m.impl("label_logits", TORCH_BOX(&mach::label_logits_cuda));
  m.impl("label_logits_grad_hidden", TORCH_BOX(&mach::label_logits_grad_hidden_cuda));
  m.impl("label_logits_grad_weight", TORCH_BOX(&mach::label_logits_grad_weight_cuda));
  m.impl("bucket_bce", TORCH_BOX(&mach::bucket_bce_cuda));
  m.impl("merge_scores", TORCH_BOX(&mach::merge_scores_cuda));
  m.impl("merge_scores_grad", TORCH_BOX(&mach::merge_scores_grad_cuda));
  m.impl("label_index", TORCH_BOX(&mach::label_index_cuda));
  m.impl("merge_topk", TORCH_BOX(&mach::merge_topk_cuda));
  m.impl("signs", TORCH_BOX(&mach::signs_cuda));
  m.impl("sparse_adam", TORCH_BOX(&mach::sparse_adam_cuda));
  m.impl("sparse_adagrad", TORCH_BOX(&mach::sparse_adagrad_cuda));
  m.impl("sparse_linear_adam", TORCH_BOX(&mach::sparse_linear_adam_cuda));
  m.impl("sparse_linear_adagrad", TORCH_BOX(&mach::sparse_linear_adagrad_cuda));
}
