#include "check_csr.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "memory.h"

namespace mach {

namespace {

// Returns whether a row is ascending, in range and finite, as nearly all rows are. There are no branches.
// Faults are collected in numbers as wide as the compared ones, so that the compiler can vectorise the loops.
template <class T, class I>
bool is_plain_row(const T* values, const I* indices, int64_t begin, int64_t end, int64_t num_columns) {
  if (begin == end) return true;
  I unsorted = 0;
  for (int64_t p = begin + 1; p < end; ++p) unsorted |= indices[p - 1] < indices[p] ? 0 : 1;
  std::conditional_t<sizeof(T) == 4, int32_t, int64_t> infinite = 0;
  if (values != nullptr)
    for (int64_t p = begin; p < end; ++p)
      infinite |= std::abs(values[p]) <= std::numeric_limits<T>::max() ? 0 : 1;
  return unsorted == 0 && infinite == 0 && indices[begin] >= 0 &&
         static_cast<int64_t>(indices[end - 1]) < num_columns;
}

}  // namespace

template <class T, class I>
CsrCheck check_csr(const T* values, const I* indices, int64_t nnz, const int64_t* indptr, int64_t num_rows,
                   int64_t num_columns) {
  if (indptr[0] != 0) return {CsrFault::indptr_start, 0, 0};
  for (int64_t n = 0; n < num_rows; ++n)
    if (indptr[n + 1] < indptr[n]) return {CsrFault::indptr_decreasing, n, 0};
  if (indptr[num_rows] != nnz) return {CsrFault::indptr_end, num_rows, 0};

  Array<I> sorted;
  for (int64_t n = 0; n < num_rows; ++n) {
    if (is_plain_row(values, indices, indptr[n], indptr[n + 1], num_columns)) continue;
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

#define MACH_CHECK_CSR(I)                                                                         \
  template CsrCheck check_csr(const float*, const I*, int64_t, const int64_t*, int64_t, int64_t); \
  template CsrCheck check_csr(const double*, const I*, int64_t, const int64_t*, int64_t, int64_t);
MACH_CHECK_CSR(int32_t)
MACH_CHECK_CSR(int64_t)

}  // namespace mach
