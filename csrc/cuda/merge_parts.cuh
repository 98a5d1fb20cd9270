// The documents that the scan has left without candidates: those with NaN or +inf, those whose labels can't
// be told apart, and those with too many candidates. Any number of a batch may be such documents, also one
// alone.
//
// All labels of such a document get their exact keys, once. The labels are split in parts, and a block finds
// the first k of a part. The first k of all labels are among them, so they are the document's candidates. The
// fewer documents there are, the more blocks share one. Which documents they are is known on the device
// alone: the launch is always the same, and blocks without a part end at once.
#pragma once

#include "merge_topk.cuh"

namespace mach {

constexpr int64_t kMaxPartsK = 1024;

// 1 <= k <= min(kMaxPartsK, capacity). Writes candidates.labels and candidates.gathered of these documents.
cudaError_t launch_merge_parts(const MergeInput<float>& merge, int64_t k, const Candidates& candidates,
                               cudaStream_t stream);

}  // namespace mach
