// How a label's R bucket scores become its key, on either device: defined in cpu/merge_scores.h.
#pragma once

namespace mach {

enum class Merge : int { mean = 0, min = 1, median = 2 };

}  // namespace mach
