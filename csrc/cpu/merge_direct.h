// merge_topk's direct path: the keys of all labels, in the definition's own arithmetic.
#pragma once

#include <cstdint>

#include "memory.h"
#include "merge_document.h"
#include "merge_topk.h"

namespace mach {

// The documents of these numbers, each by itself: any element type, no label index needed.
template <class T>
void merge_alone(const MergeTopK<T>& p, const Array<int64_t>& documents);

// The same, or, where it pays, of 16 documents with one addition.
void merge_direct(const MergeRun& run, const Array<int64_t>& documents);

}  // namespace mach
