// Sparse index structure: checks and re-ordering. Plain code, compiled once (no ISA variants).
#pragma once

#include <cstdint>
#include <functional>

#include "memory.h"

namespace mach {

// What check_csr found first; 0 is "nothing wrong". mach_ext/functional.py turns these into messages.
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

// Runs task(0) ... task(count - 1), each once, on any threads.
using RunTasks = std::function<void(int64_t count, const std::function<void(int64_t)>& task)>;

// Sorts a batch by feature. Radix sort of feature << shift | position: the cost follows the non-zeros, not
// num_features, which can be millions. Entries with a feature out of range are left out. The work is cut into
// `parts` tasks; the result does not depend on them.
class FeatureSort {
 public:
  template <class I>
  FeatureSort(const I* indices, const int64_t* indptr, int64_t num_rows, int64_t num_features, int64_t parts,
              const RunTasks& run);
  int64_t num_features() const { return first_[parts_]; }  // U
  int64_t num_entries() const { return E_; }
  // The fields of a FeatureOrder (sparse_linear.h).
  void write(const int64_t* indptr, int64_t num_rows, int64_t* features, int64_t* offsets, int64_t* positions,
             int64_t* documents) const;

 private:
  int64_t bound(int64_t part) const { return E_ * part / parts_; }

  Array<uint64_t> sorted_;
  Array<int64_t> first_;  // [parts + 1] distinct features before each part
  int64_t E_ = 0, parts_;
  int shift_ = 0;
  const RunTasks& run_;
};

}  // namespace mach
