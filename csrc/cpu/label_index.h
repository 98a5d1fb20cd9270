// The index of a label hash for merge_topk, built once: the buckets of each label side by side, and the
// labels of each bucket. Plain code, compiled once.
#pragma once

#include <cstdint>

#include "../merge_kind.h"
#include "tasks.h"

namespace mach {

// The index and the table of buckets are tensors that users can write to without notice. Every reader
// therefore checks each value where it uses it. A code that is not below B and a label outside [0, L) are
// ignored. The bounds of a list are clamped to its repetition's labels.
struct LabelIndex {
  const uint16_t* codes;       // [L, R]: buckets[r, l] at l * R + r
  const int32_t* list_starts;  // [R, B + 1]
  const int32_t* list_labels;  // [R, L]: labels of bucket b of repetition r, ascending, from
                               // list_starts[r, b] on
};

// Builds the index from buckets [R, L], B <= kMaxCodes. Returns false if a bucket is outside [0, B). The
// outputs are then useless.
bool label_index(const int32_t* buckets, int64_t R, int64_t B, int64_t L, uint16_t* codes,
                 int32_t* list_starts, int32_t* list_labels, const Tasks& run_tasks);

}  // namespace mach
