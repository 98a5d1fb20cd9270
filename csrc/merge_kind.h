// Constants of merge_scores and merge_topk that the CPU and the CUDA code share.
#pragma once

#include <cstdint>

namespace mach {

// How a label's R bucket scores become its key: defined in cpu/merge_scores.h.
enum class Merge : int { mean = 0, min = 1, median = 2 };

// The path that merge_topk takes, or the one that it is asked to prefer: cpu/merge_topk.h.
enum class Path : int64_t { automatic = -1, direct = 0, scan = 1, lists = 2 };

// Columns of merge_topk's trace [N, kTraceColumns], what was done for a document: the path, the postings that
// were gone through, the labels that got an exact key.
enum TraceColumn { kTracePath, kTracePostings, kTraceRescored, kTraceColumns };

constexpr int64_t kMaxCodes = 65536;  // buckets a uint16 code can tell apart

}  // namespace mach
