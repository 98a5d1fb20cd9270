// A feature order on the device as tensors. It is made without waiting for the device.
#pragma once

#include <optional>
#include <vector>

#include "../sparse_linear.cuh"
#include "tensors.h"

namespace mach {

// A feature order on the device (FeatureGroups in csr.cuh).
struct Groups : OrderTensors {
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

Tensor running_sum(const Tensor& t);

// Groups of `count` entries by key; those of key `none`, the largest, are left out. fill(Key(), keys,
// documents) launches what writes these two. Asks the device nothing.
template <class F>
Groups group(const Tensor& like, int64_t count, int64_t none, const F& fill) {
  const auto empty = [&](int64_t n) { return allocate(like, {n}, ScalarType::Long); };
  Groups groups{{empty(count), empty(count + 1), empty(count), empty(count)}, empty(2)};
  if (count == 0) {
    torch::stable::zero_(groups.offsets);
    torch::stable::zero_(*groups.counts);
    return groups;
  }
  const auto run = [&](auto key) {
    using Key = decltype(key);
    const cudaStream_t stream = current_stream(like);
    const Tensor keys = allocate(like, {count}, sizeof(Key) == 4 ? ScalarType::Int : ScalarType::Long);
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

Groups group_by_feature(const char* op, const Tensor& indices, const Tensor& indptr, int64_t num_features);

// The same with U and E known: waits for the device.
Groups sized_groups(Groups groups);

// An order that came as an argument. What is in it is not looked at: kernels pass over what is out of range.
Groups given_groups(const char* op, const Tensor& like, const std::vector<Tensor>& order);

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

}  // namespace mach
