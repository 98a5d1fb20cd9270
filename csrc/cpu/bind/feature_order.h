// A batch's feature order as the four tensors of the operator feature_order.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "../../arguments.h"
#include "../../check.h"
#include "../isa.h"
#include "../parallel.h"
#include "../sparse_linear.h"

namespace mach {

// A batch's feature order, given or computed here.
struct Order : OrderTensors {
  FeatureOrder view() const {
    return {pointer<int64_t>(features),  pointer<int64_t>(offsets), pointer<int64_t>(positions),
            pointer<int64_t>(documents), features.numel(),          positions.numel()};
  }
};

Order sort_by_feature(const char* op, const Tensor& indices, const Tensor& indptr, int64_t num_features);

// An order that came as an argument, checked in full.
Order given_order(const char* op, const std::vector<Tensor>& tensors, int64_t nnz, int64_t N, int64_t D);

// Calls f(tag, begin, end) for ranges [begin, end) of features, one range for each thread, of about equal
// work. The work of a feature is its number of entries plus `constant` for its own rows.
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

}  // namespace mach
