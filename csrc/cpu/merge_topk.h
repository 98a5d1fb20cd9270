// merge_topk: the exact k best labels of each document over all L, by the cheapest of three paths.
//
//   direct  computes the keys of all labels, in the definition's own arithmetic. Where it is faster, one
//           addition serves 16 documents.
//   scan    computes upper bounds on the keys, in bytes (merge_scan_kernels.h), where one addition serves a
//           block of up to 64 documents. The few labels whose bound reaches the k-th best key so far get
//           their exact key.
//   lists   works on a single document. Through the inverted lists, it touches only the labels of its heavy
//           buckets (Threshold Algorithm). For any tau:
//           sum_r p_r <= sum_r tau_r + sum_r max(0, p_r - tau_r).
//
// Every label whose exact key could be among the first k gets that key, and the order rule of topk.h decides.
// Labels and values therefore do not depend on the path. The bounds hold for the *rounded* fp32 key, as
// Document::slack proves.
//
// Plain code, compiled once. merge_topk.cpp chooses the path (merge_costs.h, merge_plan.h). The paths are in
// merge_direct.cpp, merge_scan.cpp and merge_lists.cpp. Their loops are in merge_scores.cpp, extremes.cpp and
// merge_*_kernels.cpp.
#pragma once

#include <cstdint>

#include "../merge_kind.h"
#include "label_index.h"
#include "merge_scores.h"
#include "tasks.h"

namespace mach {

template <class T>
struct MergeTopK {
  MergeScores<T> merge;     // scores [N, R, B]
  const LabelIndex* index;  // null: direct
  int64_t N, k;             // 1 <= k <= L
  Path path;                // automatic, or the one to prefer where it is possible
  int64_t threads;
  Tasks run_tasks;
  T* values;        // [N, k]
  int64_t* labels;  // [N, k]
  int64_t* trace;   // [N, kTraceColumns] or null
};

void merge_topk(const MergeTopK<float>& p);
void merge_topk(const MergeTopK<double>& p);  // direct only

}  // namespace mach
