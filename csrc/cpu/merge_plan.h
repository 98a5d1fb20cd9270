// Plans a document before its labels are gone through: its extreme scores, a first threshold, and its path.
#pragma once

#include <cstdint>

#include "merge_document.h"

namespace mach {

// Plans document n. The path stays direct where bounds would not hold or would not help.
void plan_document(const MergeRun& run, int64_t n, Document& d, Scratch& scratch);

}  // namespace mach
