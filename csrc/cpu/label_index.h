// What merge_topk wants to know of a label hash, built once: the buckets of each label side by side, and the
// labels of each bucket. Plain code, compiled once.
#pragma once

#include <cstdint>

#include "../merge_kind.h"
#include "tasks.h"

namespace mach {

// These and the table of buckets are tensors that users can write to, without any notice. So whatever reads
// them checks them where it does: a code from B on and a label outside [0, L) stand for nothing, a list lies
// within its repetition's labels.
struct LabelIndex {
  const uint16_t* codes;       // [L, R]: buckets[r, l] at l * R + r
  const int32_t* list_starts;  // [R, B + 1]
  const int32_t* list_labels;  // [R, L]: labels of bucket b of repetition r, ascending, from
                               // list_starts[r, b] on
};

// From buckets [R, L], B <= kMaxCodes. False where a bucket is not in [0, B): then nothing is of use.
bool label_index(const int32_t* buckets, int64_t R, int64_t B, int64_t L, uint16_t* codes,
                 int32_t* list_starts, int32_t* list_labels, const Tasks& run_tasks);

}  // namespace mach
