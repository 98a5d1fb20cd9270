// feature_order: the non-zeros of a batch by feature. Plain code, compiled once (no ISA variants).
#pragma once

#include <cstdint>

#include "memory.h"
#include "sparse_linear.h"
#include "tasks.h"

namespace mach {

// Sorts a batch by feature. Radix sort of feature << shift | position: the cost follows the non-zeros, not
// num_features, which can be millions. Entries with a feature out of range are left out. The work is cut into
// `parts` tasks; the result does not depend on them.
class FeatureSort {
 public:
  template <class I>
  FeatureSort(const I* indices, const int64_t* indptr, int64_t num_rows, int64_t num_features, int64_t parts,
              const Tasks& run);
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
  const Tasks& run_;
};

// Whether an order that came as an argument fits a batch of N documents, nnz entries and D features. Checked
// in full, since kernels follow it without looking: a pass over its entries, next to nothing beside the rows
// of M values that each of them stands for.
bool is_order_of(const FeatureOrder& order, int64_t nnz, int64_t N, int64_t D);

}  // namespace mach
