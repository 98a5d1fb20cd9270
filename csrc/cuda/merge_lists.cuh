// CUDA twin of the CPU's lists path (cpu/merge_topk.h): a search through the inverted index, for documents
// with few buckets that stand out. Let tau_r be any levels. In exact arithmetic, the bound of the Threshold
// Algorithm holds:
//
//   sum_r score_r(label)  <=  sum_r tau_r  +  sum over r of max(0, score_r(label) - tau_r)
//
// A label that is in no bucket above its level need not be visited. Most labels in few such buckets need not
// be visited either. A block works on a document, in these steps:
//
//   levels   The levels are as low as the budget of lists and postings allows. They are the same share of
//            the way from low to high in all repetitions. The extremes kernel left the greatest scores of
//            groups of 64 buckets. These tell how many buckets are above a level, and only such groups are
//            read again.
//   sums     The excesses over tau, in steps rounded up, are added for the lists of each label, in shared
//            memory. Labels that are equal modulo `slots` share a sum. The sum is still a bound for each, and
//            one pass over the postings suffices for any number of labels.
//   labels   The labels of the greatest sums get their exact keys. The k-th best key is the threshold.
//   proof    If every label whose key can reach the threshold was among them, these labels contain the
//            first k for certain. Otherwise the step is repeated from the sum that the threshold requires. If
//            that gives too many labels, the document goes to the scan, which gets the threshold.
//
// If the levels of a document would be too high, it does not have a few buckets that stand out. It goes to
// the scan at once.
#pragma once

#include "merge_extremes.cuh"
#include "merge_scores.cuh"
#include "merge_topk.cuh"

namespace mach {

constexpr int64_t kMaxListsK = 256;

// Which documents try.
enum class Lists { none, likely, all };

struct MergeListsParams {
  MergeInput<float> merge;  // the mean, but for Lists::none
  int64_t k;
  Lists lists;
  const int32_t* list_starts;  // [R, B + 1]
  const int32_t* list_labels;  // [R, L]
  const float *high, *low;     // [N, R]; high is NaN where a score is NaN or +inf
  const float* peaks;          // [N, R, num_peaks(B)]: greatest scores of groups
  int64_t sampled;             // labels whose exact key the scan takes to find its threshold
  Candidates candidates;       // written where the document is done
  uint32_t* left;              // [1], zero on entry: documents that are not
  int32_t* documents;          // [N]: which they are, in any order
  uint32_t* thresholds;        // [N] a rank that at least k labels of the document reach
};

cudaError_t launch_merge_lists(const MergeListsParams& params, cudaStream_t stream);

}  // namespace mach
