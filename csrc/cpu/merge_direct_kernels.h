// The loops of merge_topk's direct path: the exact sums of 16 documents at a time.
#pragma once

#include <cstdint>

#include "isa.h"

namespace mach {

// The exact sums of 16 documents at a time. Table: rows of 16 scores, a document each, [R, B, 16], and memory
// for table_rows().
constexpr int kSumLanes = 16;

// One repetition's scores of up to 16 documents (null: none, 0) -> rows [B, 16].
template <class Isa>
void interleave_scores(const float* const* scores, int64_t B, float* rows);

// Searches labels [begin, end). A label is kept if its sum s_0 + s_1 + ... + s_{R-1}, added in this order, is
// above `above` of a document. Writes the label, its documents (a bit each) and all 16 sums. The arrays have
// room for a label more than there are. Returns how many labels were kept.
template <class Isa>
int64_t sum_labels(const float* table, const uint16_t* codes, int64_t R, int64_t B, int64_t begin,
                   int64_t end, const float* above, int32_t* labels, uint32_t* documents, float* sums);

// Sets documents[i] = 0 if a code of labels[i] is not below B, for i < count. Such a sum belongs to no score.
template <class Isa>
void drop_unknown(const uint16_t* codes, int64_t R, int64_t B, const int32_t* labels, int64_t count,
                  uint32_t* documents);

}  // namespace mach
