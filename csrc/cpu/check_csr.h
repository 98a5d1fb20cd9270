// check_csr: the first fault of a sparse index structure. Plain code, compiled once (no ISA variants).
#pragma once

#include <cstdint>

namespace mach {

// The first fault that check_csr found. 0 means no fault. mach_ext/functional/_checks.py makes messages of
// these.
enum class CsrFault : int64_t {
  none = 0,
  indptr_start = 1,       // indptr[0] != 0
  indptr_decreasing = 2,  // indptr[row + 1] < indptr[row]
  indptr_end = 3,         // indptr[N] != nnz
  index_range = 4,        // indices[position] not in [0, num_columns)
  duplicate = 5,          // indices[position] occurs twice in row
  not_finite = 6,         // values[position] is NaN or infinite
};
struct CsrCheck {
  CsrFault fault = CsrFault::none;
  int64_t row = 0, position = 0;
};

// values may be null (no value check). O(nnz) for sorted rows; unsorted rows are copied and sorted.
template <class T, class I>
CsrCheck check_csr(const T* values, const I* indices, int64_t nnz, const int64_t* indptr, int64_t num_rows,
                   int64_t num_columns);

}  // namespace mach
