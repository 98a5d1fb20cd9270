// feature_order: the non-zeros of a batch by feature. Plain code, compiled once (no ISA variants).
#pragma once

#include <cstdint>

#include "memory.h"
#include "sparse_linear.h"
#include "tasks.h"

namespace mach {

// Sorts a batch by feature. This is a radix sort of feature << shift | position, so its cost depends on the
// number of non-zeros and not on num_features, which can be millions. Entries with a feature out of range are
// dropped. The work is cut into `parts` tasks, and the result does not depend on their number.
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

// Returns whether an order that came as an argument fits a batch of N documents, nnz entries and D features.
// The order is checked in full, because kernels follow it without checks. This is a pass over its entries,
// which costs little: each entry stands for rows of M values.
bool is_order_of(const FeatureOrder& order, int64_t nnz, int64_t N, int64_t D);

}  // namespace mach
