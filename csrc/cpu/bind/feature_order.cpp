#include "feature_order.h"

#include <tuple>

#include "../feature_order.h"
#include "tensors.h"

namespace mach {

Order sort_by_feature(const char* op, const Tensor& indices_, const Tensor& indptr_, int64_t num_features) {
  const Tensor indices = as_contiguous(indices_);
  const Array<int64_t> indptr = safe_indptr(op, indptr_, indices.numel());
  const int64_t N = static_cast<int64_t>(indptr.size()) - 1;
  const Tasks run = pool();
  Order order;
  dispatch_index(op, "indices", indices, [&](auto index) {
    const FeatureSort sort(pointer<decltype(index)>(indices), indptr.data(), N, num_features,
                           num_threads_for(4 * indices.numel()), run);
    const auto empty = [&](int64_t count) { return allocate(indices, {count}, ScalarType::Long); };
    const int64_t U = sort.num_features(), E = sort.num_entries();
    order = {{empty(U), empty(U + 1), empty(E), empty(E)}};
    sort.write(indptr.data(), N, mutable_pointer<int64_t>(order.features),
               mutable_pointer<int64_t>(order.offsets), mutable_pointer<int64_t>(order.positions),
               mutable_pointer<int64_t>(order.documents));
  });
  return order;
}

Order given_order(const char* op, const std::vector<Tensor>& tensors, int64_t nnz, int64_t N, int64_t D) {
  const Order order{order_tensors(op, tensors)};
  MACH_CHECK(is_order_of(order.view(), nnz, N, D), op, ": order is not of this batch");
  return order;
}

namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> feature_order_cpu(const Tensor& indices, const Tensor& indptr,
                                                             int64_t num_features) {
  const Order order = sort_by_feature("feature_order", indices, indptr, num_features);
  return {order.features, order.offsets, order.positions, order.documents};
}

}  // namespace
}  // namespace mach

STABLE_TORCH_LIBRARY_IMPL(mach_ext, CPU, m) { MACH_OPERATOR(feature_order); }
