// merge_topk's lists path: of one document, only the labels of its heavy buckets are touched, through the
// inverted lists (merge_topk.h has the bound).
#pragma once

#include "memory.h"
#include "merge_document.h"

namespace mach {

// Sets d.tau, d.gap and d.lists_cost where the path is possible.
void plan_lists(const MergeRun& run, Document& d);

// Documents for which it was possible. Those that turn out to be better off with the scan get path scan.
void merge_lists(const MergeRun& run, const Array<Document*>& documents);

}  // namespace mach
