#include "sparse_linear_choice.h"

#include "cardinality.h"

namespace mach {

template <class T, class W, class I>
bool by_feature_pays(const SparseLinear<T, W, I>& p, int64_t N, int64_t threads,
                     std::optional<int64_t> known_features) {
  const double kReuse = known_features ? 2.5 : 5;  // sorting costs about as much as it saves at 3
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
      known_features ? static_cast<double>(*known_features) : count_features(p.indices, begin, end);
  return entries >= kReuse * features && features * row_bytes >= kCached;
}

#define MACH_BY_FEATURE_PAYS(T, W, I) \
  template bool by_feature_pays(const SparseLinear<T, W, I>&, int64_t, int64_t, std::optional<int64_t>);
MACH_BY_FEATURE_PAYS(float, float, int32_t)
MACH_BY_FEATURE_PAYS(float, float, int64_t)
MACH_BY_FEATURE_PAYS(float, bf16, int32_t)
MACH_BY_FEATURE_PAYS(float, bf16, int64_t)
MACH_BY_FEATURE_PAYS(float, int8_t, int32_t)
MACH_BY_FEATURE_PAYS(float, int8_t, int64_t)
MACH_BY_FEATURE_PAYS(double, double, int32_t)
MACH_BY_FEATURE_PAYS(double, double, int64_t)

}  // namespace mach
