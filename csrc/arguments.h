// The checks that the CPU and the CUDA binding of an operator share, and the arguments that come out of them.
// Tensors in the structs are contiguous unless a comment says otherwise. Only the CUDA bindings compare
// devices (check_device).
#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "check.h"
#include "merge_kind.h"
#include "transform.h"

namespace mach {

// ---------------------------------------------------------------------------------------- sparse_linear

// weight [R, D, M], or, not stacked, [D, M] with R = 1.
struct SparseLinearArguments {
  Tensor values, indices, weight;
  std::optional<Tensor> bias;
  bool stacked;
  int64_t nnz, R, D, M;
};

inline SparseLinearArguments sparse_linear_arguments(const char* op, const Tensor& values,
                                                     const Tensor& indices, const Tensor& weight,
                                                     const std::optional<Tensor>& bias) {
  const int64_t nnz = values.numel();
  check_shape(op, "values", values, {nnz});
  check_shape(op, "indices", indices, {nnz});
  const bool stacked = weight.dim() == 3;
  MACH_CHECK(stacked || weight.dim() == 2, op, ": weight must be [R, D, M] or [D, M]");
  const int64_t R = stacked ? weight.size(0) : 1, D = weight.size(-2), M = weight.size(-1);
  SparseLinearArguments a{as_contiguous(values),
                          as_contiguous(indices),
                          as_contiguous(weight),
                          std::nullopt,
                          stacked,
                          nnz,
                          R,
                          D,
                          M};
  if (bias) {
    stacked ? check_shape(op, "bias", *bias, {R, M}) : check_shape(op, "bias", *bias, {M});
    check_dtype(op, "bias", *bias, values.scalar_type());
    a.bias = as_contiguous(*bias);
  }
  return a;
}

// What belongs together in a gradient to the weight, grad [N, R, M].
inline void check_weight_gradient(const char* op, const Tensor& grad, const Tensor& values,
                                  const Tensor& indices, const Tensor& indptr) {
  check_shape(op, "indices", indices, {values.numel()});
  check_dtype(op, "values", values, grad.scalar_type());
  MACH_CHECK(indptr.dim() == 1 && indptr.size(0) >= 1, op, ": indptr must be 1-D with N + 1 entries");
  MACH_CHECK(grad.dim() == 3 && grad.size(0) == indptr.size(0) - 1, op, ": grad must be [N, R, M]");
}

// The four tensors of the operator feature_order: what belongs to which is in cpu/sparse_linear.h.
struct OrderTensors {
  Tensor features, offsets, positions, documents;
};
using OptionalOrder = std::optional<std::vector<Tensor>>;

// An order that came as an argument. What is in it is not looked at.
inline OrderTensors order_tensors(const char* op, const std::vector<Tensor>& order) {
  MACH_CHECK(order.size() == 4, op, ": order must be (features, offsets, positions, documents)");
  for (const Tensor& t : order) check_dtype(op, "order", t, ScalarType::Long);
  const OrderTensors tensors{as_contiguous(order[0]), as_contiguous(order[1]), as_contiguous(order[2]),
                             as_contiguous(order[3])};
  check_shape(op, "order's offsets", tensors.offsets, {tensors.features.numel() + 1});
  check_shape(op, "order's documents", tensors.documents, {tensors.positions.numel()});
  return tensors;
}

// ------------------------------------------------------------------------------------- optimiser steps

// The moments of a parameter of this shape, which a step changes where they lie.
inline void check_state(const char* op, const Tensor& parameter, std::initializer_list<Tensor> state,
                        std::initializer_list<int64_t> shape) {
  for (const Tensor& s : state) {
    check_shape(op, "state", s, shape);
    check_dtype(op, "state", s, parameter.scalar_type());
    MACH_CHECK(s.is_contiguous(), op, ": state must be contiguous");
  }
}

// sparse_adam, sparse_adagrad: parameter [P, M], gradient [U, M]; without rows U = P.
struct RowStepArguments {
  Tensor gradient;
  std::optional<Tensor> rows;
  int64_t P, M, U;
};

inline RowStepArguments row_step_arguments(const char* op, const Tensor& parameter,
                                           const std::optional<Tensor>& rows, const Tensor& gradient,
                                           std::initializer_list<Tensor> state) {
  MACH_CHECK(parameter.dim() == 2 && parameter.is_contiguous(), op, ": parameter must be contiguous [P, M]");
  const int64_t P = parameter.size(0), M = parameter.size(1), U = rows ? rows->numel() : P;
  if (rows) check_dtype(op, "rows", *rows, ScalarType::Long);
  check_shape(op, "gradient", gradient, {U, M});
  check_dtype(op, "gradient", gradient, parameter.scalar_type());
  check_state(op, parameter, state, {P, M});
  RowStepArguments a{as_contiguous(gradient), std::nullopt, P, M, U};
  if (rows) a.rows = as_contiguous(*rows);
  return a;
}

// sparse_linear_adam, sparse_linear_adagrad: weight [R, D, M], grad [N, R, M].
struct LinearStepArguments {
  Tensor grad, values;
  int64_t N, R, D, M;
};

inline LinearStepArguments linear_step_arguments(const char* op, const Tensor& weight, const Tensor& grad,
                                                 const Tensor& values, std::initializer_list<Tensor> state) {
  MACH_CHECK(weight.dim() == 3 && weight.is_contiguous(), op, ": weight must be contiguous [R, D, M]");
  const int64_t R = weight.size(0), D = weight.size(1), M = weight.size(2);
  MACH_CHECK(grad.dim() == 3, op, ": grad must be [N, R, M]");
  const int64_t N = grad.size(0);
  check_shape(op, "grad", grad, {N, R, M});
  check_dtype(op, "grad", grad, weight.scalar_type());
  check_dtype(op, "values", values, weight.scalar_type());
  check_state(op, weight, state, {R, D, M});
  return {as_contiguous(grad), as_contiguous(values), N, R, D, M};
}

// ----------------------------------------------------------------------------------------- label_logits

// hidden [N, H], shared by the repetitions, or [N, R, H].
struct LabelLogitsArguments {
  Tensor hidden, weight, buckets, labels;
  bool shared;
  int64_t N, m, R, H, B, L;

  Tensor checked_grad(const char* op, const Tensor& grad) const {
    return checked(op, "grad", grad, {N, m, R}, hidden.scalar_type());
  }
};

inline LabelLogitsArguments label_logits_arguments(const char* op, const Tensor& hidden, const Tensor& weight,
                                                   const Tensor& buckets, const Tensor& labels) {
  MACH_CHECK(weight.dim() == 3 && labels.dim() == 2 && buckets.dim() == 2, op,
             ": weight must be [R, H, B], buckets [R, L], labels [N, m]");
  const int64_t N = labels.size(0), m = labels.size(1), L = buckets.size(1);
  const int64_t R = weight.size(0), H = weight.size(1), B = weight.size(2);
  const bool shared = hidden.dim() != 3;
  shared ? check_shape(op, "hidden", hidden, {N, H}) : check_shape(op, "hidden", hidden, {N, R, H});
  check_dtype(op, "weight", weight, hidden.scalar_type());
  check_dtype(op, "buckets", buckets, ScalarType::Int);
  check_dtype(op, "labels", labels, ScalarType::Long);
  check_shape(op, "buckets", buckets, {R, L});
  return {as_contiguous(hidden),
          as_contiguous(weight),
          as_contiguous(buckets),
          as_contiguous(labels),
          shared,
          N,
          m,
          R,
          H,
          B,
          L};
}

// ------------------------------------------------------------------------------------------- bucket_bce

// A tensor [N, G, B] whose buckets are adjacent in memory. Documents and repetitions may lie in any order.
struct GroupRows {
  int64_t document_stride, repetition_stride;
};

inline GroupRows group_rows(const char* op, const char* name, const Tensor& t) {
  MACH_CHECK(t.dim() == 3 && (t.numel() == 0 || t.size(2) == 1 || t.stride(2) == 1), op, ": ", name,
             " must be [N, G, B] with adjacent buckets");
  return {t.stride(0), t.stride(1)};
}

// logits [N, G, B]; bias and grad_bias [G, B]; buckets [G, L]; out [N, G, B] in bfloat16.
struct BucketBceArguments {
  Tensor buckets, label_indices;
  std::optional<Tensor> bias;
  int64_t N, G, B, L;
  GroupRows logits, out;
};

inline BucketBceArguments bucket_bce_arguments(const char* op, const Tensor& logits,
                                               const std::optional<Tensor>& bias, const Tensor& buckets,
                                               const Tensor& label_indices, std::optional<double> scale,
                                               const std::optional<Tensor>& out,
                                               const std::optional<Tensor>& grad_bias) {
  const GroupRows rows = group_rows(op, "logits", logits);
  const int64_t N = logits.size(0), G = logits.size(1), B = logits.size(2);
  MACH_CHECK(buckets.dim() == 2 && buckets.size(0) == G, op, ": buckets must be [G, L]");
  check_dtype(op, "buckets", buckets, ScalarType::Int);
  check_dtype(op, "label_indices", label_indices, ScalarType::Long);
  BucketBceArguments a{as_contiguous(buckets),
                       as_contiguous(label_indices),
                       std::nullopt,
                       N,
                       G,
                       B,
                       buckets.size(1),
                       rows,
                       rows};
  if (bias) a.bias = checked(op, "bias", *bias, {G, B}, logits.scalar_type());
  MACH_CHECK(scale || (!out && !grad_bias), op, ": out and grad_bias need a scale");
  if (out) {
    check_shape(op, "out", *out, {N, G, B});
    check_dtype(op, "out", *out, ScalarType::BFloat16);
    check_dtype(op, "logits with out", logits, ScalarType::Float);
    a.out = group_rows(op, "out", *out);
  }
  if (grad_bias) {
    check_shape(op, "grad_bias", *grad_bias, {G, B});
    check_dtype(op, "grad_bias", *grad_bias, logits.scalar_type());
    MACH_CHECK(grad_bias->is_contiguous(), op, ": grad_bias must be contiguous");
  }
  return a;
}

// --------------------------------------------------------------------------------------- bucket_forward

// hidden [N, H], shared by the repetitions, or [N, G, H], rows of H contiguous units that start at multiples
// of 16 bytes: else a copy of what was given. weight [G, H, B] with the memory of [G, B, H]. Both are
// bfloat16.
struct BucketForwardArguments {
  Tensor hidden, weight;
  std::optional<Tensor> bias;
  int64_t N, G, H, B, document_stride, repetition_stride;
};

inline bool starts_aligned(const Tensor& t) {
  return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0;
}

inline BucketForwardArguments bucket_forward_arguments(const char* op, const Tensor& hidden_,
                                                       const Tensor& weight,
                                                       const std::optional<Tensor>& bias) {
  MACH_CHECK(weight.dim() == 3 && weight.size(0) >= 1 && weight.size(2) >= 1, op,
             ": weight must be [G, H, B] with G >= 1 and B >= 1");
  MACH_CHECK(hidden_.dim() == 2 || hidden_.dim() == 3, op, ": hidden must be [N, H] or [N, G, H]");
  const int64_t N = hidden_.size(0), G = weight.size(0), H = weight.size(1), B = weight.size(2);
  const bool shared = hidden_.dim() == 2;
  shared ? check_shape(op, "hidden", hidden_, {N, H}) : check_shape(op, "hidden", hidden_, {N, G, H});
  check_dtype(op, "hidden", hidden_, ScalarType::BFloat16);
  check_dtype(op, "weight", weight, ScalarType::BFloat16);
  MACH_CHECK(H % 8 == 0, op, ": H must be a multiple of 8, got ", H);
  const auto has_stride = [&](int64_t d, int64_t stride) {
    return weight.size(d) <= 1 || weight.stride(d) == stride;
  };
  MACH_CHECK(weight.numel() == 0 || (has_stride(0, B * H) && has_stride(1, 1) && has_stride(2, H)), op,
             ": weight [G, H, B] must have the memory of a contiguous [G, B, H]");
  bool rows = hidden_.stride(hidden_.dim() - 1) == 1 && starts_aligned(hidden_);
  for (int64_t d = 0; d + 1 < hidden_.dim(); ++d) rows = rows && hidden_.stride(d) % 8 == 0;
  Tensor hidden = rows ? hidden_ : as_contiguous(hidden_);
  if (hidden.numel() > 0 && !starts_aligned(hidden)) hidden = torch::stable::clone(hidden);
  MACH_CHECK(weight.numel() == 0 || starts_aligned(weight), op, ": weight must be aligned to 16 bytes");
  BucketForwardArguments a{
      hidden, weight, std::nullopt, N, G, H, B, hidden.stride(0), shared ? 0 : hidden.stride(1)};
  if (bias) a.bias = checked(op, "bias", *bias, {G, B}, ScalarType::Float);
  return a;
}

// What bucket_forward_bce needs besides: the buckets of the group, and labels in CSR form.
struct GroupLabels {
  Tensor buckets, label_indices;
};

inline GroupLabels group_labels(const char* op, const BucketForwardArguments& a, const Tensor& buckets,
                                const Tensor& label_indices, const Tensor& label_indptr) {
  MACH_CHECK(buckets.dim() == 2, op, ": buckets must be [G, L]");
  check_dtype(op, "label_indices", label_indices, ScalarType::Long);
  MACH_CHECK(label_indptr.dim() == 1 && label_indptr.size(0) == a.N + 1, op,
             ": label_indptr must have N + 1 entries");
  return {checked(op, "buckets", buckets, {a.G, buckets.size(1)}, ScalarType::Int),
          as_contiguous(label_indices)};
}

inline Transform parse_transform(const char* op, const std::string& transform) {
  if (transform == "none") return Transform::none;
  if (transform == "sigmoid") return Transform::sigmoid;
  MACH_CHECK(transform == "logsigmoid", op, ": transform must be none, sigmoid or logsigmoid, got ",
             transform);
  return Transform::logsigmoid;
}

// ------------------------------------------------------------------------------------------------ merge

inline Merge parse_merge(const char* op, const std::string& merge) {
  if (merge == "mean") return Merge::mean;
  if (merge == "min") return Merge::min;
  MACH_CHECK(merge == "median", op, ": merge must be mean, min or median, got ", merge);
  return Merge::median;
}

inline Path parse_path(const char* op, const std::string& path) {
  if (path == "direct") return Path::direct;
  if (path == "scan") return Path::scan;
  if (path == "lists") return Path::lists;
  MACH_CHECK(path == "auto", op, ": path must be auto, direct, scan or lists, got ", path);
  return Path::automatic;
}

// scores [N, R, B] may be strided (as a transposed [R, N, B] is) as long as the buckets of a repetition are
// adjacent.
struct MergeArguments {
  Tensor scores, buckets;
  Merge merge;
  int64_t N() const { return scores.size(0); }
  int64_t R() const { return scores.size(1); }
  int64_t B() const { return scores.size(2); }
  int64_t L() const { return buckets.size(1); }
};

inline MergeArguments merge_arguments(const char* op, const Tensor& scores, const Tensor& buckets,
                                      const std::string& merge) {
  MACH_CHECK(scores.dim() == 3 && scores.size(1) >= 1, op, ": scores must be [N, R, B] with R >= 1");
  check_dtype(op, "buckets", buckets, ScalarType::Int);
  check_shape(op, "buckets", buckets, {scores.size(1), buckets.size(1)});
  const bool adjacent = scores.size(2) <= 1 || scores.stride(2) == 1;
  return {adjacent ? scores : as_contiguous(scores), as_contiguous(buckets), parse_merge(op, merge)};
}

// labels [N, m] of merge_scores
inline Tensor checked_labels(const char* op, const Tensor& labels, int64_t N) {
  check_dtype(op, "labels", labels, ScalarType::Long);
  MACH_CHECK(labels.dim() == 2 && labels.size(0) == N, op, ": labels must be [N, m]");
  return as_contiguous(labels);
}

// A hash [R, L] of which label_index makes an index.
inline void check_hash(const char* op, const Tensor& buckets, int64_t B) {
  MACH_CHECK(buckets.dim() == 2, op, ": buckets must be [R, L]");
  check_dtype(op, "buckets", buckets, ScalarType::Int);
  MACH_CHECK(B >= 1 && B <= kMaxCodes && buckets.size(1) <= INT32_MAX, op, ": needs 1 <= B <= ", kMaxCodes,
             " and L < 2^31, got B=", B, ", L=", buckets.size(1));
}

// merge_topk's others. codes, list_starts and list_labels are what label_index made, or none of them.
inline void check_topk(const char* op, const MergeArguments& a, int64_t k, const std::optional<Tensor>& codes,
                       const std::optional<Tensor>& list_starts, const std::optional<Tensor>& list_labels,
                       const std::optional<Tensor>& trace) {
  const int64_t R = a.R(), B = a.B(), L = a.L();
  MACH_CHECK(k >= 0 && k <= L && L <= INT32_MAX, op, ": needs 0 <= k <= L < 2^31, got k=", k, ", L=", L);
  MACH_CHECK(B >= 1 || L == 0, op, ": scores must have B >= 1 buckets");
  if (codes) {
    MACH_CHECK(list_starts && list_labels, op, ": codes, list_starts and list_labels come together");
    check_dtype(op, "codes", *codes, ScalarType::UInt16);
    check_dtype(op, "list_starts", *list_starts, ScalarType::Int);
    check_dtype(op, "list_labels", *list_labels, ScalarType::Int);
    check_shape(op, "codes", *codes, {L, R});
    check_shape(op, "list_starts", *list_starts, {R, B + 1});
    check_shape(op, "list_labels", *list_labels, {R, L});
  }
  if (trace) {
    check_shape(op, "trace", *trace, {a.N(), kTraceColumns});
    check_dtype(op, "trace", *trace, ScalarType::Long);
    MACH_CHECK(trace->is_contiguous(), op, ": trace must be contiguous");
  }
}

}  // namespace mach
