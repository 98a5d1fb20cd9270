// CPU operators: tensors -> pointers, the split of the work over threads, memory. Loops are in <op>.cpp.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../check.h"
#include "bucket_backward.h"
#include "bucket_bce.h"
#include "bucket_svm.h"
#include "csr.h"
#include "decode.h"
#include "isa.h"
#include "label_index.h"
#include "label_logits.h"
#include "memory.h"
#include "merge.h"
#include "signs.h"
#include "sparse_linear.h"
#include "sparse_optim.h"

namespace mach {
namespace {

// Bytes of an element of what operators make.
int64_t size_of(ScalarType type) {
  return type == ScalarType::UInt16 ? 2 : type == ScalarType::Int || type == ScalarType::Float ? 4 : 8;
}

// Not initialised, of at most 3 dimensions, on CPU. (torch::stable::new_empty goes through the dispatcher.)
Tensor allocate(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef size,
                std::optional<ScalarType> type = std::nullopt) {
  int64_t stride[3], count = 1, next = 1;
  for (size_t d = size.size(); d-- > 0; next = bytes_of(next, std::max<int64_t>(1, size[d]))) {
    stride[d] = next;
    count = bytes_of(count, size[d]);
  }
  const auto dtype =
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(type.value_or(like.scalar_type())));
  AtenTensorHandle handle;
  // Nothing else can be wrong with it.
  if (aoti_torch_empty_strided(static_cast<int64_t>(size.size()), size.data(), stride, dtype,
                               aoti_torch_device_type_cpu(), 0, &handle) != AOTI_TORCH_SUCCESS)
    throw NotEnoughMemory(bytes_of(count, size_of(type.value_or(like.scalar_type()))), "a result");
  return Tensor(handle);
}

Tensor zeros(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef size) {
  Tensor out = allocate(like, size);
  torch::stable::zero_(out);
  return out;
}

// What an operator can't do for want of memory is said with its name.
template <auto kOperator, class Name>
struct Guarded;
template <class Result, class... Arguments, Result (*kOperator)(Arguments...), class Name>
struct Guarded<kOperator, Name> {
  static Result call(Arguments... arguments) {
    try {
      return kOperator(std::forward<Arguments>(arguments)...);
    } catch (const NotEnoughMemory& error) {
      throw std::runtime_error(std::string(Name::text()) + ": " + error.what());
    } catch (const std::bad_alloc&) {  // of the standard library: nothing that grows with the input
      throw std::runtime_error(std::string(Name::text()) +
                               ": not enough memory: under 4096 bytes for scratch");
    }
  }
};

// Fewer elementary operations than this are not worth a second thread.
constexpr int64_t kSerialWork = 1 << 15;

int64_t num_threads_for(int64_t work) {
  return work < kSerialWork ? 1 : static_cast<int64_t>(torch::stable::get_num_threads());
}

// Runs task(0) ... task(count - 1), each once, on the threads of PyTorch's pool. What a task throws is thrown
// here once all have ended: out of parallel_for it would come without its message.
template <class F>
void run_tasks(int64_t count, const F& task) {
  if (count == 1) return task(0);
  std::exception_ptr error;
  std::atomic_flag taken = ATOMIC_FLAG_INIT;
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    try {
      for (int64_t i = begin; i < end; ++i) task(i);
    } catch (...) {
      if (!taken.test_and_set()) error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

// f(begin, end) on consecutive ranges of [0, count), one a thread.
template <class F>
void parallel_ranges(int64_t count, int64_t work, const F& f) {
  const int64_t parts = std::max<int64_t>(1, std::min(count, num_threads_for(work)));
  run_tasks(parts, [&](int64_t i) { f(count * i / parts, count * (i + 1) / parts); });
}

// Start of range i when [0, count) is cut into `parts` ranges of about equal weight; prefix[u] is the weight
// of the units before u.
int64_t balanced_bound(const int64_t* prefix, int64_t count, int64_t parts, int64_t i) {
  if (i == parts) return count;
  const int64_t target = prefix[0] + (prefix[count] - prefix[0]) * i / parts;
  return std::lower_bound(prefix, prefix + count, target) - prefix;
}

// parallel_ranges with ranges of about equal weight.
template <class F>
void parallel_balanced(const int64_t* prefix, int64_t count, int64_t work, const F& f) {
  const int64_t parts = num_threads_for(work);
  run_tasks(parts, [&](int64_t i) {
    f(balanced_bound(prefix, count, parts, i), balanced_bound(prefix, count, parts, i + 1));
  });
}

// indptr as int64, as it came.
Array<int64_t> given_indptr(const char* op, const Tensor& indptr) {
  MACH_CHECK(indptr.dim() == 1 && indptr.numel() >= 1, op, ": indptr must be 1-D with N + 1 entries");
  const Tensor dense = as_contiguous(indptr);
  Array<int64_t> given(dense.numel());
  dispatch_index(op, "indptr", dense, [&](auto index) {
    std::copy_n(pointer<decltype(index)>(dense), given.size(), given.begin());
  });
  return given;
}

// Forces it to be monotone and within [0, nnz], so that no kernel can leave its arrays whatever came in.
// Faulty input is reported by check_csr; here it only must not crash.
void make_safe(Array<int64_t>& indptr, int64_t nnz) {
  int64_t previous = 0;
  for (int64_t& start : indptr) previous = start = std::min(std::max(start, previous), nnz);
}

Array<int64_t> safe_indptr(const char* op, const Tensor& indptr, int64_t nnz) {
  Array<int64_t> safe = given_indptr(op, indptr);
  make_safe(safe, nnz);
  return safe;
}

// ---------------------------------------------------------------------------------------- sparse_linear

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
      check_dtype(op, "weight", weight, values.scalar_type());
      f(value, value, index);
    });
  });
}

// A batch's feature order: the four tensors of the operator feature_order, given or computed here.
struct Order {
  Tensor features, offsets, positions, documents;
  FeatureOrder view() const {
    return {pointer<int64_t>(features),  pointer<int64_t>(offsets), pointer<int64_t>(positions),
            pointer<int64_t>(documents), features.numel(),          positions.numel()};
  }
};

Order sort_by_feature(const char* op, const Tensor& indices_, const Tensor& indptr_, int64_t num_features) {
  const Tensor indices = as_contiguous(indices_);
  const Array<int64_t> indptr = safe_indptr(op, indptr_, indices.numel());
  const int64_t N = static_cast<int64_t>(indptr.size()) - 1;
  const RunTasks run = [](int64_t count, const std::function<void(int64_t)>& task) {
    run_tasks(count, task);
  };
  Order order;
  dispatch_index(op, "indices", indices, [&](auto index) {
    const FeatureSort sort(pointer<decltype(index)>(indices), indptr.data(), N, num_features,
                           num_threads_for(4 * indices.numel()), run);
    const auto empty = [&](int64_t count) { return allocate(indices, {count}, ScalarType::Long); };
    const int64_t U = sort.num_features(), E = sort.num_entries();
    order = {empty(U), empty(U + 1), empty(E), empty(E)};
    sort.write(indptr.data(), N, mutable_pointer<int64_t>(order.features),
               mutable_pointer<int64_t>(order.offsets), mutable_pointer<int64_t>(order.positions),
               mutable_pointer<int64_t>(order.documents));
  });
  return order;
}

// An order that came as an argument. Checked in full, since kernels follow it without looking: a pass over
// its entries, next to nothing beside the rows of M values that each of them stands for.
Order given_order(const char* op, const std::vector<Tensor>& tensors, int64_t nnz, int64_t N, int64_t D) {
  MACH_CHECK(tensors.size() == 4, op, ": order must be (features, offsets, positions, documents)");
  for (const Tensor& t : tensors) check_dtype(op, "order", t, ScalarType::Long);
  const Order order{as_contiguous(tensors[0]), as_contiguous(tensors[1]), as_contiguous(tensors[2]),
                    as_contiguous(tensors[3])};
  const FeatureOrder v = order.view();
  check_shape(op, "order's offsets", order.offsets, {v.U + 1});
  check_shape(op, "order's documents", order.documents, {v.E});
  // Negative where x < 0 or x >= limit.
  const auto outside = [](int64_t x, int64_t limit) {
    return static_cast<int64_t>(static_cast<uint64_t>(x) |
                                (static_cast<uint64_t>(limit) - 1 - static_cast<uint64_t>(x)));
  };
  int64_t wrong = v.offsets[0] == 0 && v.offsets[v.U] == v.E ? 0 : -1;
  for (int64_t u = 0; u < v.U; ++u)
    wrong |= outside(v.features[u], D) | (v.offsets[u + 1] - v.offsets[u]) | outside(v.offsets[u], v.E + 1);
  for (int64_t u = 1; u < v.U; ++u) wrong |= v.features[u] - v.features[u - 1] - 1;
  for (int64_t e = 0; e < v.E; ++e) wrong |= outside(v.positions[e], nnz) | outside(v.documents[e], N);
  MACH_CHECK(wrong >= 0, op, ": order is not of this batch");
  return order;
}

using OptionalOrder = std::optional<std::vector<Tensor>>;

// About how many different features a batch has: of a hash table without chains, how many places are taken,
// and how many collisions that many make likely (linear counting). A few percent off at most, and far cheaper
// than the sort that it decides about.
template <class I>
double count_features(const I* indices, int64_t begin, int64_t end) {
  int bits = 10;
  while ((int64_t(1) << bits) < 8 * (end - begin)) ++bits;
  Array<uint64_t> taken(int64_t(1) << (bits - 6));
  for (int64_t p = begin; p < end; ++p) {
    const uint64_t place = static_cast<uint64_t>(indices[p]) * 0x9E3779B97F4A7C15u >> (64 - bits);
    taken[place >> 6] |= uint64_t(1) << (place & 63);
  }
  int64_t count = 0;
  for (const uint64_t word : taken) count += __builtin_popcountll(word);
  const double places = std::ldexp(1.0, bits);
  return -places * std::log1p(-static_cast<double>(count) / places);
}

// Bytes of outputs that sparse_linear_by_feature works on at a time.
constexpr int64_t kOutputs = 512 << 10;

// Whether sparse_linear_by_feature may be used (it needs rows sorted, features in range), and is faster: rows
// of the weight are not in the cache anyway, are wanted again and again, and the outputs fit in it.
template <class T, class W, class I>
bool by_feature_pays(const SparseLinear<T, W, I>& p, int64_t N, int64_t threads,
                     const std::optional<Order>& order) {
  const double kReuse = order ? 2.5 : 5;  // sorting costs about as much as it saves at 3
  constexpr int64_t kCached = 8 << 20;
  const int64_t begin = p.indptr[0], end = p.indptr[N], entries = end - begin;
  const int64_t row_bytes = p.M * static_cast<int64_t>(sizeof(W));
  if (entries < kReuse * N || N < kReuse || p.M < threads * 64 ||
      N * 64 * static_cast<int64_t>(sizeof(T)) > kOutputs || p.D * row_bytes < kCached ||
      entries * row_bytes < kReuse * kCached)  // what the last line needs, whatever the number of features
    return false;
  for (int64_t n = 0; n < N; ++n) {
    bool sorted = true;
    int64_t previous = 0;
    for (int64_t e = p.indptr[n]; e < p.indptr[n + 1]; previous = p.indices[e++])
      sorted &= previous <= static_cast<int64_t>(p.indices[e]);
    if (!sorted || previous >= p.D) return false;
  }
  const double features =
      order ? static_cast<double>(order->features.numel()) : count_features(p.indices, begin, end);
  return entries >= kReuse * features && features * row_bytes >= kCached;
}

Tensor sparse_linear_cpu(const Tensor& values_, const Tensor& indices_, const Tensor& indptr_,
                         const Tensor& weight_, const std::optional<Tensor>& bias_, bool relu,
                         const OptionalOrder& given, bool check) {
  const char* op = "sparse_linear";
  const Tensor values = as_contiguous(values_), indices = as_contiguous(indices_),
               weight = as_contiguous(weight_);
  const int64_t nnz = values.numel();
  check_shape(op, "values", values, {nnz});
  check_shape(op, "indices", indices, {nnz});
  const bool stacked = weight.dim() == 3;
  MACH_CHECK(stacked || weight.dim() == 2, op, ": weight must be [R, D, M] or [D, M]");
  const int64_t R = stacked ? weight.size(0) : 1, D = weight.size(-2), M = weight.size(-1);
  Array<int64_t> indptr = given_indptr(op, indptr_);
  const int64_t N = static_cast<int64_t>(indptr.size()) - 1;
  std::optional<Tensor> bias;
  if (bias_.has_value()) {
    bias = as_contiguous(*bias_);
    stacked ? check_shape(op, "bias", *bias, {R, M}) : check_shape(op, "bias", *bias, {M});
    check_dtype(op, "bias", *bias, values.scalar_type());
  }
  std::optional<Order> order;
  if (given) order = given_order(op, *given, nnz, N, D);
  Tensor out = stacked ? allocate(values, {N, R, M}) : allocate(values, {N, M});

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
    params.bias = bias ? pointer<T>(*bias) : nullptr;
    params.relu = relu;
    const int64_t threads = num_threads_for((nnz + N) * R * M);
    // Column bounds on multiples of 16 elements: one cache line of float.
    const auto column = [&](int64_t i, int64_t parts) { return i == parts ? M : M * i / parts / 16 * 16; };
    if (by_feature_pays(params, N, threads, order)) {
      if (!order) order = sort_by_feature(op, indices, indptr_, params.D);
      // Outputs that stay in the second-level cache.
      const int64_t width = std::max<int64_t>(64, kOutputs / static_cast<int64_t>(sizeof(T)) / N / 64 * 64);
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
  check_shape(op, "indices", indices, {values.numel()});
  check_dtype(op, "values", values, grad.scalar_type());
  MACH_CHECK(indptr.dim() == 1 && indptr.size(0) >= 1, op, ": indptr must be 1-D with N + 1 entries");
  const int64_t N = indptr.size(0) - 1;
  MACH_CHECK(grad.dim() == 3 && grad.size(0) == N, op, ": grad must be [N, R, M]");
  if (order) return given_order(op, *order, values.numel(), N, num_features);
  return sort_by_feature(op, indices, indptr, num_features);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> feature_order_cpu(const Tensor& indices, const Tensor& indptr,
                                                             int64_t num_features) {
  const Order order = sort_by_feature("feature_order", indices, indptr, num_features);
  return {order.features, order.offsets, order.positions, order.documents};
}

// f(tag, begin, end) for ranges [begin, end) of features, one range a thread, of
// about equal work: that of a feature is its entries and, `constant` entries' worth, its own rows.
template <class T, class F>
void parallel_features(const FeatureOrder& order, int64_t constant, int64_t R, int64_t M, const F& f) {
  const int64_t parts = std::max<int64_t>(1, std::min(order.U, num_threads_for(order.E * R * M)));
  const auto bound = [&](int64_t part) {
    const int64_t target = (order.E + constant * order.U) * part / parts;
    int64_t low = 0, high = order.U;
    while (low < high) {
      const int64_t u = (low + high) / 2;
      order.offsets[u] + constant* u < target ? low = u + 1 : high = u;
    }
    return part == parts ? order.U : low;
  };
  with_isa<T>(
      [&](auto isa) { run_tasks(parts, [&](int64_t part) { f(isa, bound(part), bound(part + 1)); }); });
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

// ----------------------------------------------------------------------------------------- label_logits

// Contiguous arguments and the parameters that point into them.
struct LabelLogitsArguments {
  Tensor hidden, weight, buckets, labels;
  int64_t work() const { return labels.numel() * weight.size(0) * weight.size(1); }
  Tensor checked_grad(const char* op, const Tensor& grad) const {
    return checked(op, "grad", grad, {labels.size(0), labels.size(1), weight.size(0)}, hidden.scalar_type());
  }

  template <class T>
  LabelLogits<T> params() const {
    const int64_t H = weight.size(1), r_stride = hidden.dim() == 3 ? H : 0;
    return {pointer<T>(hidden),
            hidden.dim() == 3 ? weight.size(0) * H : H,
            r_stride,
            pointer<T>(weight),
            nullptr,
            pointer<int32_t>(buckets),
            pointer<int64_t>(labels),
            labels.size(0),
            labels.size(1),
            weight.size(0),
            H,
            weight.size(2),
            buckets.size(1)};
  }
};

LabelLogitsArguments label_logits_arguments(const char* op, const Tensor& hidden, const Tensor& weight,
                                            const Tensor& buckets, const Tensor& labels) {
  MACH_CHECK(weight.dim() == 3 && labels.dim() == 2, op, ": weight must be [R, H, B], labels [N, m]");
  const int64_t N = labels.size(0), R = weight.size(0), H = weight.size(1);
  if (hidden.dim() == 3)
    check_shape(op, "hidden", hidden, {N, R, H});
  else
    check_shape(op, "hidden", hidden, {N, H});
  check_dtype(op, "weight", weight, hidden.scalar_type());
  check_dtype(op, "buckets", buckets, ScalarType::Int);
  check_dtype(op, "labels", labels, ScalarType::Long);
  check_shape(op, "buckets", buckets, {R, buckets.size(1)});
  return {as_contiguous(hidden), as_contiguous(weight), as_contiguous(buckets), as_contiguous(labels)};
}

Tensor label_logits_cpu(const Tensor& hidden, const Tensor& weight, const std::optional<Tensor>& bias_,
                        const Tensor& buckets, const Tensor& labels) {
  const char* op = "label_logits";
  const LabelLogitsArguments a = label_logits_arguments(op, hidden, weight, buckets, labels);
  const int64_t N = labels.size(0), m = labels.size(1), R = weight.size(0), B = weight.size(2);
  std::optional<Tensor> bias;
  if (bias_.has_value()) bias = checked(op, "bias", *bias_, {R, B}, hidden.scalar_type());
  Tensor out = allocate(hidden, {N, m, R});
  dispatch_floating(op, "hidden", hidden, [&](auto t) {
    using T = decltype(t);
    LabelLogits<T> params = a.params<T>();
    params.bias = bias ? pointer<T>(*bias) : nullptr;
    with_isa<T>([&](auto isa) {
      parallel_ranges(N, a.work(), [&](int64_t begin, int64_t end) {
        label_logits<decltype(isa)>(params, mutable_pointer<T>(out), begin, end);
      });
    });
  });
  return out;
}

Tensor label_logits_grad_hidden_cpu(const Tensor& grad_, const Tensor& hidden, const Tensor& weight,
                                    const Tensor& buckets, const Tensor& labels) {
  const char* op = "label_logits_grad_hidden";
  const LabelLogitsArguments a = label_logits_arguments(op, hidden, weight, buckets, labels);
  const Tensor grad = a.checked_grad(op, grad_);
  Tensor out = zeros(a.hidden, a.hidden.sizes());
  dispatch_floating(op, "hidden", hidden, [&](auto t) {
    using T = decltype(t);
    with_isa<T>([&](auto isa) {
      parallel_ranges(labels.size(0), a.work(), [&](int64_t begin, int64_t end) {
        label_logits_grad_hidden<decltype(isa)>(a.params<T>(), pointer<T>(grad), mutable_pointer<T>(out),
                                                begin, end);
      });
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> label_logits_grad_weight_cpu(const Tensor& grad_, const Tensor& hidden,
                                                        const Tensor& weight, const Tensor& buckets,
                                                        const Tensor& labels) {
  const char* op = "label_logits_grad_weight";
  const LabelLogitsArguments a = label_logits_arguments(op, hidden, weight, buckets, labels);
  const Tensor grad = a.checked_grad(op, grad_);
  const int64_t R = weight.size(0), H = weight.size(1), B = weight.size(2);
  Tensor grad_weight = zeros(hidden, {R, H, B}), grad_bias = zeros(hidden, {R, B});
  dispatch_floating(op, "hidden", hidden, [&](auto t) {
    using T = decltype(t);
    with_isa<T>([&](auto isa) {
      const LabelLogits<T> params = a.params<T>();
      parallel_ranges(R * H, a.work(), [&](int64_t begin, int64_t end) {
        label_logits_grad_weight<decltype(isa)>(params, pointer<T>(grad), mutable_pointer<T>(grad_weight),
                                                begin, end);
      });
      label_logits_grad_bias<decltype(isa)>(params, pointer<T>(grad), mutable_pointer<T>(grad_bias));
    });
  });
  return {grad_weight, grad_bias};
}

// ------------------------------------------------------------------------------------------------ signs

Tensor signs_cpu(Tensor gradient, bool nonnegative) {
  const char* op = "signs";
  check_rows(op, "gradient", gradient, "[N, T]");
  const int64_t N = gradient.size(0), columns = gradient.size(1), stride = N ? gradient.stride(0) : columns;
  Tensor counts = allocate(gradient, {N}, ScalarType::Long);
  dispatch_floating(op, "gradient", gradient, [&](auto t) {
    using T = decltype(t);
    const Signs<T> params{mutable_pointer<T>(gradient), stride, columns, nonnegative};
    with_isa<T>([&](auto isa) {
      parallel_ranges(N, N * columns, [&](int64_t begin, int64_t end) {
        signs<decltype(isa)>(params, mutable_pointer<int64_t>(counts), begin, end);
      });
    });
  });
  return counts;
}

// ------------------------------------------------------------------------------------------- bucket_bce

Tensor bucket_bce_cpu(Tensor logits, const Tensor& buckets_, const Tensor& label_indices_,
                      const Tensor& label_indptr, double scale, bool gradient) {
  const char* op = "bucket_bce";
  check_rows(op, "logits", logits, "[N, B]");
  const int64_t N = logits.size(0), B = logits.size(1);
  check_dtype(op, "buckets", buckets_, ScalarType::Int);
  check_dtype(op, "label_indices", label_indices_, ScalarType::Long);
  const Tensor buckets = as_contiguous(buckets_), label_indices = as_contiguous(label_indices_);
  const Array<int64_t> indptr = safe_indptr(op, label_indptr, label_indices.numel());
  MACH_CHECK(static_cast<int64_t>(indptr.size()) == N + 1, op, ": label_indptr must have N + 1 entries");
  Tensor loss = allocate(logits, {N}, ScalarType::Double);
  dispatch_floating(op, "logits", logits, [&](auto t) {
    using T = decltype(t);
    const BucketBce<T> params{mutable_pointer<T>(logits),
                              N ? logits.stride(0) : B,
                              B,
                              pointer<int32_t>(buckets),
                              buckets.numel(),
                              pointer<int64_t>(label_indices),
                              indptr.data(),
                              static_cast<T>(scale),
                              gradient};
    with_isa<T>([&](auto isa) {
      parallel_ranges(N, N * B * 16, [&](int64_t begin, int64_t end) {
        Array<int64_t> seen(B, -1);
        Array<T> positive(B);
        bucket_bce<decltype(isa)>(params, mutable_pointer<double>(loss), seen.data(), positive.data(), begin,
                                  end);
      });
    });
  });
  return loss;
}

// ------------------------------------------------------------------------------------------- bucket_svm

// The first address from `pointer` on that is a multiple of kBytes.
template <size_t kBytes, class T>
T* aligned(T* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  return reinterpret_cast<T*>((address + kBytes - 1) / kBytes * kBytes);
}

Tensor bucket_svm_cpu(const Tensor& values_, const Tensor& indices_, const Tensor& indptr_,
                      const Tensor& buckets_, const Tensor& label_indices_, const Tensor& label_indptr_,
                      int64_t first, double C, double tolerance, int64_t max_passes, Tensor weight,
                      Tensor bias) {
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
  const int64_t tiles = (M + kSvmTile - 1) / kSvmTile;
  Tensor passes = allocate(values, {tiles}, ScalarType::Long);
  dispatch_floating(op, "values", values, [&](auto t) {
    using T = decltype(t);
    check_dtype(op, "weight", weight, values.scalar_type());
    check_dtype(op, "bias", bias, values.scalar_type());
    const T* x = pointer<T>(values);
    Array<T> squares(N);
    for (int64_t n = 0; n < N; ++n) {
      double sum = 1;
      for (int64_t e = indptr[n]; e < indptr[n + 1]; ++e) sum += static_cast<double>(x[e]) * x[e];
      squares[n] = static_cast<T>(sum);
    }
    const BucketSvm<T> params{x,         feature,        indptr.data(),     N,
                              D,         squares.data(), static_cast<T>(C), static_cast<T>(tolerance),
                              max_passes};
    T* out = mutable_pointer<T>(weight);
    T* out_bias = mutable_pointer<T>(bias);
    const int64_t row = D ? weight.stride(0) : M, column = weight.stride(1), bias_stride = bias.stride(0);
    const auto solve = [&](int64_t tile) {
      const int64_t begin = tile * kSvmTile, size = std::min(kSvmTile, M - begin);
      Array<T> memory((D + 2) * kSvmTile), alpha(N * kSvmTile);
      T* const w = aligned<kSvmTile * sizeof(T)>(memory.data());
      Array<uint16_t> positives(N);
      Array<int32_t> order(N);
      uint32_t used = 0;
      for (int64_t n = 0; n < N; ++n)
        for (int64_t e = label_indptr[n]; e < label_indptr[n + 1]; ++e) {
          // What is no bucket at all is none of these, either.
          const int64_t b = pointer<int32_t>(buckets)[label[e]] - first - begin;
          if (b < 0 || b >= size) continue;
          positives[n] |= static_cast<uint16_t>(1u << b);
          used |= 1u << b;
        }
      const SvmScratch<T> scratch{w, alpha.data(), positives.data(), order.data(), used};
      with_isa<T>([&](auto isa) {
        mutable_pointer<int64_t>(passes)[tile] = used ? bucket_svm<decltype(isa)>(params, scratch) : 0;
      });
      for (int64_t d = 0; d < D; ++d)
        for (int64_t j = 0; j < size; ++j) out[d * row + (begin + j) * column] = w[d * kSvmTile + j];
      // Where no document wants a bucket: w = 0, a margin of -1.
      for (int64_t j = 0; j < size; ++j)
        out_bias[(begin + j) * bias_stride] = (used >> j) & 1u ? w[D * kSvmTile + j] : T(-1);
    };
    run_tasks(tiles, solve);
  });
  return passes;
}

// -------------------------------------------------------------------------------------- bucket_backward

Tensor bucket_backward_cpu(const Tensor& gradient_, const Tensor& hidden_, const Tensor& weight_,
                           double negligible, int64_t most, Tensor grad_hidden, Tensor grad_weight) {
  const char* op = "bucket_backward";
  MACH_CHECK(gradient_.dim() == 2 && hidden_.dim() == 2, op, ": gradient must be [N, B], hidden [N, H]");
  const int64_t N = gradient_.size(0), B = gradient_.size(1), H = hidden_.size(1);
  check_shape(op, "hidden", hidden_, {N, H});
  check_shape(op, "weight", weight_, {H, B});
  check_shape(op, "grad_hidden", grad_hidden, {N, H});
  check_shape(op, "grad_weight", grad_weight, {H, B});
  for (const auto& [name, t] : {std::pair<const char*, const Tensor&>{"hidden", hidden_},
                                {"weight", weight_},
                                {"grad_hidden", grad_hidden},
                                {"grad_weight", grad_weight}})
    check_dtype(op, name, t, gradient_.scalar_type());
  MACH_CHECK(grad_weight.is_contiguous() && (H <= 1 || grad_hidden.stride(1) == 1), op,
             ": grad_weight must be contiguous, grad_hidden's rows, too");
  MACH_CHECK(N <= INT32_MAX && B <= INT32_MAX, op, ": N and B must be below 2^31");
  const Tensor gradient = as_contiguous(gradient_), weight = as_contiguous(weight_);
  const Tensor hidden = H <= 1 || hidden_.stride(1) == 1 ? hidden_ : as_contiguous(hidden_);
  Tensor found = allocate(gradient, {}, ScalarType::Long);
  dispatch_floating(op, "gradient", gradient, [&](auto t) {
    using T = decltype(t);
    const BucketBackward<T> params{pointer<T>(gradient),
                                   pointer<T>(hidden),
                                   pointer<T>(weight),
                                   hidden.stride(0),
                                   N,
                                   H,
                                   B,
                                   static_cast<T>(negligible),
                                   mutable_pointer<T>(grad_hidden),
                                   grad_hidden.stride(0),
                                   mutable_pointer<T>(grad_weight)};
    with_isa<T>([&](auto isa) {
      using Tag = decltype(isa);
      Array<T> row(N), column(B);
      Array<int64_t> offset(N + 1), bucket_offset(B + 1);
      const Tensor kept = allocate(gradient, {N, B}, ScalarType::Int);
      parallel_ranges(B, N * B, [&](int64_t begin, int64_t end) {
        negligible_columns<Tag>(params, column.data(), begin, end);
      });
      parallel_ranges(N, N * B, [&](int64_t begin, int64_t end) {
        negligible_rows<Tag>(params, row.data(), mutable_pointer<int32_t>(kept), offset.data() + 1, begin,
                             end);
      });
      T total = 0;
      for (int64_t n = 0; n < N; ++n) {
        total += row[n];
        offset[n + 1] += offset[n];
      }
      for (T& sum : row) sum = total > 0 ? sum / total : T(0);
      const int64_t kept_entries = *mutable_pointer<int64_t>(found) = offset[N];
      if (kept_entries > most) return;
      Array<int32_t> bucket(kept_entries), document(kept_entries);
      Array<T> by_document(kept_entries), by_bucket(kept_entries);
      const SplitGradient<T> split{row.data(),    column.data(),   offset.data(),      bucket_offset.data(),
                                   bucket.data(), document.data(), by_document.data(), by_bucket.data()};
      split_gradient<Tag>(params, pointer<int32_t>(kept), split);
      const int64_t tiles = (H + kTile<Tag> - 1) / kTile<Tag>;
      parallel_ranges(tiles, (N + B + 2 * kept_entries) * H, [&](int64_t begin, int64_t end) {
        Array<T> scratch((N + B) * kTile<Tag>);
        bucket_backward<Tag>(params, split, scratch.data(), begin, end);
      });
    });
  });
  return found;
}

// ------------------------------------------------------------------------------------------------ merge

struct MergeArguments {
  Tensor scores, buckets;
  Merge merge;
  int64_t N() const { return scores.size(0); }
  int64_t R() const { return scores.size(1); }

  template <class T>
  MergeScores<T> params() const {
    return {pointer<T>(scores),
            scores.stride(0),
            scores.stride(1),
            pointer<int32_t>(buckets),
            R(),
            scores.size(2),
            buckets.size(1),
            merge};
  }
};

// scores may be strided (as a transposed [R, N, B] is) as long as the buckets of a repetition are adjacent.
MergeArguments merge_arguments(const char* op, const Tensor& scores, const Tensor& buckets,
                               const std::string& merge) {
  MACH_CHECK(scores.dim() == 3 && scores.size(1) >= 1, op, ": scores must be [N, R, B] with R >= 1");
  check_dtype(op, "buckets", buckets, ScalarType::Int);
  check_shape(op, "buckets", buckets, {scores.size(1), buckets.size(1)});
  const bool adjacent = scores.size(2) <= 1 || scores.stride(2) == 1;
  return {adjacent ? scores : as_contiguous(scores), as_contiguous(buckets), parse_merge(op, merge)};
}

Tensor checked_labels(const char* op, const Tensor& labels, int64_t N) {
  check_dtype(op, "labels", labels, ScalarType::Long);
  MACH_CHECK(labels.dim() == 2 && labels.size(0) == N, op, ": labels must be [N, m]");
  return as_contiguous(labels);
}

Tensor merge_scores_cpu(const Tensor& scores, const Tensor& buckets, const Tensor& labels_,
                        const std::string& merge) {
  const char* op = "merge_scores";
  const MergeArguments a = merge_arguments(op, scores, buckets, merge);
  const Tensor labels = checked_labels(op, labels_, a.N());
  const int64_t m = labels.size(1);
  Tensor out = allocate(scores, {a.N(), m});
  dispatch_floating(op, "scores", scores, [&](auto t) {
    using T = decltype(t);
    with_isa<T>([&](auto isa) {
      parallel_ranges(a.N(), labels.numel() * a.R() * 4, [&](int64_t begin, int64_t end) {
        Array<T> sorted(a.R());
        merge_scores<decltype(isa)>(a.params<T>(), pointer<int64_t>(labels), m, mutable_pointer<T>(out),
                                    sorted.data(), begin, end);
      });
    });
  });
  return out;
}

Tensor merge_scores_grad_cpu(const Tensor& grad_, const Tensor& scores, const Tensor& buckets,
                             const Tensor& labels_, const std::string& merge) {
  const char* op = "merge_scores_grad";
  const MergeArguments a = merge_arguments(op, scores, buckets, merge);
  const Tensor labels = checked_labels(op, labels_, a.N());
  const Tensor grad = checked(op, "grad", grad_, {a.N(), labels.size(1)}, scores.scalar_type());
  Tensor out = zeros(scores, {a.N(), a.R(), scores.size(2)});
  dispatch_floating(op, "scores", scores, [&](auto t) {
    using T = decltype(t);
    with_isa<T>([&](auto isa) {
      parallel_ranges(a.N(), labels.numel() * a.R() * 4, [&](int64_t begin, int64_t end) {
        Array<int32_t> order(a.R());
        merge_scores_grad<decltype(isa)>(a.params<T>(), pointer<int64_t>(labels), labels.size(1),
                                         pointer<T>(grad), mutable_pointer<T>(out), order.data(), begin, end);
      });
    });
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> label_index_cpu(const Tensor& buckets_, int64_t num_buckets) {
  const char* op = "label_index";
  MACH_CHECK(buckets_.dim() == 2, op, ": buckets must be [R, L]");
  check_dtype(op, "buckets", buckets_, ScalarType::Int);
  const int64_t R = buckets_.size(0), L = buckets_.size(1), B = num_buckets;
  MACH_CHECK(B >= 1 && B <= kMaxCodes && L <= INT32_MAX, op, ": needs 1 <= B <= ", kMaxCodes,
             " and L < 2^31, got B=", B, ", L=", L);
  const Tensor buckets = as_contiguous(buckets_);
  Tensor codes = allocate(buckets, {L, R}, ScalarType::UInt16);
  Tensor starts = allocate(buckets, {R, B + 1}), labels = allocate(buckets, {R, L});
  const bool in_range = label_index(pointer<int32_t>(buckets), R, B, L, mutable_pointer<uint16_t>(codes),
                                    mutable_pointer<int32_t>(starts), mutable_pointer<int32_t>(labels),
                                    [](int64_t count, const auto& task) { run_tasks(count, task); });
  if (!in_range) {
    const int32_t* bucket = pointer<int32_t>(buckets);
    const int32_t* wrong = std::find_if(bucket, bucket + R * L, [&](int32_t b) { return b < 0 || b >= B; });
    MACH_CHECK(false, op, ": buckets must be in [0, B=", B, "), got ", *wrong, " for label ",
               (wrong - bucket) % L, " in repetition ", (wrong - bucket) / L);
  }
  return {codes, starts, labels};
}

Path parse_path(const char* op, const std::string& path) {
  if (path == "direct") return Path::direct;
  if (path == "scan") return Path::scan;
  if (path == "lists") return Path::lists;
  MACH_CHECK(path == "auto", op, ": path must be auto, direct, scan or lists, got ", path);
  return Path::automatic;
}

std::tuple<Tensor, Tensor> merge_topk_cpu(const Tensor& scores, const Tensor& buckets,
                                          const std::optional<Tensor>& codes,
                                          const std::optional<Tensor>& list_starts,
                                          const std::optional<Tensor>& list_labels, int64_t k,
                                          const std::string& merge, const std::string& path,
                                          const std::optional<Tensor>& trace) {
  const char* op = "merge_topk";
  const MergeArguments a = merge_arguments(op, scores, buckets, merge);
  const int64_t N = a.N(), R = a.R(), B = scores.size(2), L = a.buckets.size(1);
  MACH_CHECK(k >= 0 && k <= L && L <= INT32_MAX, op, ": needs 0 <= k <= L < 2^31, got k=", k, ", L=", L);
  MACH_CHECK(B >= 1 || L == 0, op, ": scores must have B >= 1 buckets");
  LabelIndex index{};
  if (codes) {
    check_label_index(op, *codes, list_starts, list_labels, R, L, B);
    MACH_CHECK(codes->is_contiguous() && list_starts->is_contiguous() && list_labels->is_contiguous(), op,
               ": codes, list_starts and list_labels must be contiguous");
    index = {pointer<uint16_t>(*codes), pointer<int32_t>(*list_starts), pointer<int32_t>(*list_labels)};
  }
  if (trace) {
    check_shape(op, "trace", *trace, {N, kTraceColumns});
    check_dtype(op, "trace", *trace, ScalarType::Long);
    MACH_CHECK(trace->is_contiguous(), op, ": trace must be contiguous");
    std::fill_n(mutable_pointer<int64_t>(*trace), trace->numel(), 0);
  }
  Tensor values = allocate(scores, {N, k}), labels = allocate(scores, {N, k}, ScalarType::Long);
  if (values.numel() == 0) return {values, labels};
  dispatch_floating(op, "scores", scores, [&](auto t) {
    using T = decltype(t);
    decode(Decode<T>{
        a.params<T>(), codes ? &index : nullptr, N, k, parse_path(op, path), num_threads_for(N * L * R),
        [](int64_t count, const auto& task) { run_tasks(count, task); }, mutable_pointer<T>(values),
        mutable_pointer<int64_t>(labels), trace ? mutable_pointer<int64_t>(*trace) : nullptr});
  });
  return {values, labels};
}

// ----------------------------------------------------------------------------------------- sparse_optim

// f(RowStep<T>, state pointers' offset, begin, end): checks shared by the optimiser steps, the split. `state`
// are the moments. Without rows every element is as good as the next one: ranges of elements, not of rows.
template <class F>
void dispatch_row_step(const char* op, const Tensor& parameter, const std::optional<Tensor>& rows,
                       const Tensor& gradient, std::initializer_list<Tensor> state, const F& f) {
  MACH_CHECK(parameter.dim() == 2 && parameter.is_contiguous(), op, ": parameter must be contiguous [P, M]");
  const int64_t P = parameter.size(0), M = parameter.size(1), U = rows ? rows->numel() : P;
  if (rows) check_dtype(op, "rows", *rows, ScalarType::Long);
  check_shape(op, "gradient", gradient, {U, M});
  check_dtype(op, "gradient", gradient, parameter.scalar_type());
  for (const Tensor& s : state) {
    check_shape(op, "state", s, {P, M});
    check_dtype(op, "state", s, parameter.scalar_type());
    MACH_CHECK(s.is_contiguous(), op, ": state must be contiguous");
  }
  const Tensor dense_gradient = as_contiguous(gradient);
  std::optional<Tensor> dense_rows;
  if (rows) dense_rows = as_contiguous(*rows);
  dispatch_floating(op, "parameter", parameter, [&](auto t) {
    using T = decltype(t);
    T* x = mutable_pointer<T>(parameter);
    const T* g = pointer<T>(dense_gradient);
    if (!dense_rows)
      return parallel_ranges(P * M, P * M * 4, [&](int64_t begin, int64_t end) {
        f(RowStep<T>{x + begin, nullptr, g + begin, 1, end - begin}, begin, 0, 1);
      });
    const RowStep<T> params{x, pointer<int64_t>(*dense_rows), g, P, M};
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
  MACH_CHECK(weight.dim() == 3 && weight.is_contiguous(), op, ": weight must be contiguous [R, D, M]");
  const int64_t R = weight.size(0), D = weight.size(1), M = weight.size(2);
  MACH_CHECK(grad_.dim() == 3, op, ": grad must be [N, R, M]");
  check_shape(op, "grad", grad_, {grad_.size(0), R, M});
  check_dtype(op, "grad", grad_, weight.scalar_type());
  check_dtype(op, "values", values_, weight.scalar_type());
  for (const Tensor& s : state) {
    check_shape(op, "state", s, {R, D, M});
    check_dtype(op, "state", s, weight.scalar_type());
    MACH_CHECK(s.is_contiguous(), op, ": state must be contiguous");
  }
  const Tensor grad = as_contiguous(grad_), values = as_contiguous(values_);
  const Order tensors = given_order(op, given, values.numel(), grad.size(0), D);
  const FeatureOrder order = tensors.view();
  dispatch_floating(op, "weight", weight, [&](auto t) {
    using T = decltype(t);
    // Reading and writing the row, its moments: as much as a dozen entries of grad, which is in the cache.
    parallel_features<T>(order, 12, R, M, [&](auto isa, int64_t begin, int64_t end) {
      Array<T> scratch(M);
      for (int64_t r = 0; r < R; ++r)
        for (int64_t u = begin; u < end; ++u) {
          sparse_linear_grad_row<decltype(isa)>(pointer<T>(values), order, u, pointer<T>(grad) + r * M, R * M,
                                                scratch.data(), M);
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

// ------------------------------------------------------------------------------------------- inspection

std::tuple<int64_t, int64_t, int64_t> check_csr_cpu(const std::optional<Tensor>& values_,
                                                    const Tensor& indices_, const Tensor& indptr_,
                                                    int64_t num_columns) {
  const char* op = "check_csr";
  const Tensor indices = as_contiguous(indices_);
  std::optional<Tensor> values;
  if (values_.has_value()) {
    values = as_contiguous(*values_);
    check_shape(op, "values", *values, {indices.numel()});
  }
  const Array<int64_t> starts = given_indptr(op, indptr_);
  const int64_t N = static_cast<int64_t>(starts.size()) - 1;
  CsrCheck found;
  dispatch_index(op, "indices", indices, [&](auto index) {
    const auto* column = pointer<decltype(index)>(indices);
    const auto check = [&](const auto* value) {
      found = check_csr(value, column, indices.numel(), starts.data(), N, num_columns);
    };
    if (!values) return check(static_cast<const float*>(nullptr));
    dispatch_floating(op, "values", *values, [&](auto t) { check(pointer<decltype(t)>(*values)); });
  });
  return {static_cast<int64_t>(found.fault), found.row, found.position};
}

int64_t cpu_isa() { return static_cast<int64_t>(isa()); }

}  // namespace
}  // namespace mach

#define MACH_OPERATOR(NAME)                     \
  struct NAME##_name {                          \
    static const char* text() { return #NAME; } \
  };                                            \
  m.impl(#NAME, TORCH_BOX((&mach::Guarded<&mach::NAME##_cpu, NAME##_name>::call)))

STABLE_TORCH_LIBRARY_IMPL(mach_ext, CPU, m) {
  MACH_OPERATOR(feature_order);
  MACH_OPERATOR(sparse_linear);
  MACH_OPERATOR(sparse_linear_grad_values);
  MACH_OPERATOR(sparse_linear_grad_weight);
  MACH_OPERATOR(sparse_linear_grad_rows);
  MACH_OPERATOR(label_logits);
  MACH_OPERATOR(label_logits_grad_hidden);
  MACH_OPERATOR(label_logits_grad_weight);
  MACH_OPERATOR(bucket_bce);
  MACH_OPERATOR(bucket_backward);
  MACH_OPERATOR(bucket_svm);
  MACH_OPERATOR(merge_scores);
  MACH_OPERATOR(merge_scores_grad);
  MACH_OPERATOR(label_index);
  MACH_OPERATOR(merge_topk);
  MACH_OPERATOR(signs);
  MACH_OPERATOR(sparse_adam);
  MACH_OPERATOR(sparse_adagrad);
  MACH_OPERATOR(sparse_linear_adam);
  MACH_OPERATOR(sparse_linear_adagrad);
  MACH_OPERATOR(check_csr);
}

STABLE_TORCH_LIBRARY_IMPL(mach_ext, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&mach::cpu_isa));
}
