// CUDA twin of the CPU's lists path (cpu/merge_topk.h): the inverted index, clipped, for documents of which
// few buckets stand out. With any clip levels tau_r, in exact arithmetic
//
//   sum_r score_r(label)  <=  sum_r tau_r  +  sum over r of max(0, score_r(label) - tau_r)
//
// (the Threshold Algorithm's bound), so labels that are in no bucket above its clip level need not be looked
// at, and of the others, most of those that are in few. One block a document:
//
//   levels   as low as the budget of lists and postings allows, the same share of the way from low to high in
//            all repetitions. How many buckets are above a level is known from the greatest scores of groups
//            of 64, which the extremes kernel left; only groups above it are read again.
//   sums     the excesses over tau, in steps rounded up, of a label's lists, in shared memory. A sum stands
//            for all labels that are equal modulo `slots`: so it is a bound still, and one pass over the
//            postings does for any number of labels.
//   labels   those of the greatest sums get their exact keys; the k-th best of them is the threshold.
//   proof    where every label whose key can reach the threshold has a sum that was great enough, the labels
//            found are the first k for certain. Else once more from the sum that the threshold asks for, and
//            where that is too many, the document is left to the scan, which gets the threshold.
//
// Choice: a document whose levels would lie too high has no few buckets that stand out; it is left at once.
#pragma once

#include "merge_scores.cuh"
#include "merge_topk.cuh"

namespace mach {

constexpr int64_t kMaxListsK = 256;
constexpr int kPeakRows = 8;  // of a group: 8 neighbouring buckets of every 32, so often

// Which documents try.
enum class Lists { none, likely, all };

// Groups of a repetition, four for each 256 buckets: group g has buckets g / 4 * 256 + i * 32 + g % 4 * 8 + j
// for i, j in [0, 8).
constexpr int64_t num_peaks(int64_t B) { return (B + 255) / 256 * 4; }

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
