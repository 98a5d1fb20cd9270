// The loops of merge_topk's lists path: sums of labels in bytes, list after list.
#pragma once

#include <cstdint>

#include "isa.h"

namespace mach {

// Does sums[label - first] += amount, saturating at 255, for ascending labels within [first, stop). It stops
// at the first label beyond stop, and returns how many labels were within.
template <class Isa>
int64_t add_saturating(const int32_t* labels, int64_t count, int64_t first, int64_t stop, uint8_t* sums,
                       int amount);

// Positions of the sums of at least `bound` (> 0), ascending, with room for count + 1; all sums become 0.
// Returns how many.
template <class Isa>
int64_t take_at_least(uint8_t* sums, int64_t count, uint8_t bound, int32_t* positions);

}  // namespace mach
