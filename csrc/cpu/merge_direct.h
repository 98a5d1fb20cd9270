// merge_topk's direct path: the keys of all labels, in the definition's own arithmetic.
#pragma once

#include <cstdint>

#include "memory.h"
#include "merge_document.h"
#include "merge_topk.h"

namespace mach {

// Computes each of these documents by itself. It takes any element type and needs no label index.
template <class T>
void merge_alone(const MergeTopK<T>& p, const Array<int64_t>& documents);

// The same in fp32; where it pays, one addition serves 16 documents.
void merge_direct(const MergeRun& run, const Array<int64_t>& documents);

}  // namespace mach
