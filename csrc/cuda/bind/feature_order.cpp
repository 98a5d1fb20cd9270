#include "feature_order.h"

#include <tuple>

namespace mach {

Tensor running_sum(const Tensor& t) {
  using torch::stable::detail::from;
  StableIValue stack[]{from(t), from(int64_t{0}), from(std::optional<ScalarType>())};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::cumsum", "", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
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

Groups given_groups(const char* op, const Tensor& like, const std::vector<Tensor>& order) {
  Groups groups{order_tensors(op, order), std::nullopt};
  check_device(op, like, {groups.features, groups.offsets, groups.positions, groups.documents});
  return groups;
}

namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> feature_order_cuda(const Tensor& indices, const Tensor& indptr,
                                                              int64_t num_features) {
  const DeviceGuard guard(indices);
  const Groups groups = sized_groups(group_by_feature("feature_order", indices, indptr, num_features));
  return {groups.features, groups.offsets, groups.positions, groups.documents};
}

}  // namespace
}  // namespace mach

MACH_CUDA_LIBRARY_IMPL(m) { MACH_CUDA_OPERATOR(feature_order); }
