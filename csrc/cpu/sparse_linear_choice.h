// Decides whether sparse_linear works document by document or feature by feature. Plain code, compiled once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "sparse_linear.h"

namespace mach {

// Bytes of outputs that sparse_linear_by_feature works on at a time.
constexpr int64_t kOutputs = 512 << 10;

// Columns that sparse_linear_by_feature works on at a time. Their outputs stay in the second-level cache.
template <class T>
int64_t by_feature_width(int64_t N) {
  return std::max<int64_t>(64, kOutputs / static_cast<int64_t>(sizeof(T)) / N / 64 * 64);
}

// Returns whether sparse_linear_by_feature is possible and faster. It is possible if rows are sorted and
// features are in range. It is faster if the weight's rows are not in the cache, are needed repeatedly, and
// the outputs fit into the cache. known_features is the number of features of the batch if its order exists.
template <class T, class W, class I>
bool by_feature_pays(const SparseLinear<T, W, I>& p, int64_t N, int64_t threads,
                     std::optional<int64_t> known_features);

}  // namespace mach
