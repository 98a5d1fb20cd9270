// What the operators of the merge mean by their arguments, on either device.
#pragma once

#include <cstdint>

namespace mach {

// How a label's R bucket scores become its key: defined in cpu/merge_scores.h.
enum class Merge : int { mean = 0, min = 1, median = 2 };

// How merge_topk goes about it, or is asked to: cpu/merge_topk.h.
enum class Path : int64_t { automatic = -1, direct = 0, scan = 1, lists = 2 };

// Columns of merge_topk's trace [N, kTraceColumns], what was done for a document: the path, the postings that
// were gone through, the labels that got an exact key.
enum TraceColumn { kTracePath, kTracePostings, kTraceRescored, kTraceColumns };

constexpr int64_t kMaxCodes = 65536;  // buckets a uint16 code can tell apart

}  // namespace mach
