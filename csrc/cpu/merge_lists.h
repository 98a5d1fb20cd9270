// merge_topk's lists path: of one document, only the labels of its heavy buckets are touched, through the
// inverted lists (merge_topk.h has the bound).
#pragma once

#include "memory.h"
#include "merge_document.h"

namespace mach {

// Sets d.tau, d.gap and d.lists_cost where the path is possible for the document.
void plan_lists(const MergeRun& run, Document& d);

// Runs the path for documents for which plan_lists found it possible. If the scan turns out to be cheaper for
// a document, the document gets path scan and no result.
void merge_lists(const MergeRun& run, const Array<Document*>& documents);

}  // namespace mach
