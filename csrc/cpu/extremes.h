// Least and greatest scores of a row, and which scores are above a threshold.
#pragma once

#include <cstdint>

#include "isa.h"

namespace mach {

// low[i], high[i]: least and greatest of scores[i], scores[i + 16], ... (+-inf where there is none). Returns
// whether all scores are below +inf and none is NaN.
template <class Isa>
bool lane_extremes(const float* scores, int64_t count, float* low, float* high);

// Positions of the values above the threshold, ascending, at most `room` of them; returns how many.
template <class Isa>
int64_t find_above(const float* values, int64_t count, float threshold, int32_t* positions, int64_t room);

}  // namespace mach
