// merge_topk's scan: upper bounds on the keys, in bytes, for blocks of up to 64 documents with one addition.
// The few labels whose bound reaches the k-th best key so far get their exact key.
#pragma once

#include <cstdint>

#include "memory.h"
#include "merge_document.h"
#include "merge_scan_kernels.h"

namespace mach {

// The bytes of one repetition's scores [B] under the mean.
template <class Tag>
void quantize_mean(const MergeRun& run, const Document& d, int64_t r, uint8_t* bytes) {
  const float steps = static_cast<float>(1 / d.unit);
  quantize<Tag>(run.scores(d.n, r), run.call.merge.B, d.from_low ? d.low[r] : d.high[r],
                d.from_low ? steps : -steps, bytes);
}

// Runs the path for planned documents. A document that the direct path would serve better gets path direct
// and no result.
void merge_scan(const MergeRun& run, const Array<Document*>& documents);

}  // namespace mach
