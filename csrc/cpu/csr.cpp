#include "csr.h"

#include <algorithm>
#include <cmath>

namespace mach {

template <class T, class I>
CsrCheck check_csr(const T* values, const I* indices, int64_t nnz, const int64_t* indptr, int64_t num_rows,
                   int64_t num_columns) {
  if (indptr[0] != 0) return {CsrFault::indptr_start, 0, 0};
  for (int64_t n = 0; n < num_rows; ++n)
    if (indptr[n + 1] < indptr[n]) return {CsrFault::indptr_decreasing, n, 0};
  if (indptr[num_rows] != nnz) return {CsrFault::indptr_end, num_rows, 0};

  std::vector<I> sorted;
  for (int64_t n = 0; n < num_rows; ++n) {
    bool ascending = true;
    for (int64_t p = indptr[n]; p < indptr[n + 1]; ++p) {
      if (indices[p] < 0 || static_cast<int64_t>(indices[p]) >= num_columns)
        return {CsrFault::index_range, n, p};
      if (values != nullptr && !std::isfinite(values[p])) return {CsrFault::not_finite, n, p};
      if (p > indptr[n] && indices[p] <= indices[p - 1]) ascending = false;
    }
    if (ascending) continue;
    sorted.assign(indices + indptr[n], indices + indptr[n + 1]);
    std::sort(sorted.begin(), sorted.end());
    const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
    if (twice == sorted.end()) continue;
    for (int64_t p = indptr[n]; p < indptr[n + 1]; ++p)
      if (indices[p] == *twice) return {CsrFault::duplicate, n, p};
  }
  return {};
}

template <class I>
FeatureOrder feature_order(const I* indices, const int64_t* indptr, int64_t num_rows, int64_t num_features) {
  std::vector<int64_t> next(num_features, 0);  // count, then the next free slot, of each feature
  const int64_t begin = indptr[0], end = indptr[num_rows];
  const auto in_range = [&](int64_t p) {
    return indices[p] >= 0 && static_cast<int64_t>(indices[p]) < num_features;
  };
  for (int64_t p = begin; p < end; ++p)
    if (in_range(p)) ++next[indices[p]];

  FeatureOrder order;
  order.offset.push_back(0);
  for (int64_t d = 0; d < num_features; ++d) {
    if (next[d] == 0) continue;
    const int64_t count = next[d];
    next[d] = order.offset.back();
    order.feature.push_back(d);
    order.offset.push_back(order.offset.back() + count);
  }
  order.position.resize(order.offset.back());
  order.row.resize(order.offset.back());
  for (int64_t n = 0; n < num_rows; ++n)
    for (int64_t p = indptr[n]; p < indptr[n + 1]; ++p) {
      if (!in_range(p)) continue;
      const int64_t slot = next[indices[p]]++;
      order.position[slot] = p;
      order.row[slot] = n;
    }
  return order;
}

#define MACH_CSR(I)                                                                                \
  template CsrCheck check_csr(const float*, const I*, int64_t, const int64_t*, int64_t, int64_t);  \
  template CsrCheck check_csr(const double*, const I*, int64_t, const int64_t*, int64_t, int64_t); \
  template FeatureOrder feature_order(const I*, const int64_t*, int64_t, int64_t);
MACH_CSR(int32_t)
MACH_CSR(int64_t)

}  // namespace mach
