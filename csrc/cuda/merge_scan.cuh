// CUDA twin of the CPU's scan (cpu/merge_topk.h): for fp32 scores, upper bounds on the keys of all labels, 16
// documents with one load of 16 bytes; what is left of a document's labels gets its exact key in
// launch_merge_topk. Six kernels:
//
//   extremes   of each document and repetition: the greatest score and its bucket, a low score.
//   lists      documents that don't need the scan (merge_lists.cuh). The others get places in it, so that it
//              costs what they cost.
//   sample     exact keys of some labels, those of the best buckets and a run of others.
//   plan       the k-th best of them is the threshold. From it the step, in which scores are counted, and the
//              bound.
//   table      how far each score lies under its repetition's greatest, in steps, rounded down: a byte. Where
//              the merge is min or median: 1 for a score below the threshold, else 0.
//   scan       for each label the sum of R bytes, for 16 documents in 8 registers; sums up to the bound are
//              candidates. Where nobody wants a label any more after some repetitions, it gets no others.
//
// A label whose fp32 key reaches the threshold has a sum up to the bound: see `slack` in merge_scan.cu. A
// document for which that can't be said (NaN, +inf, nothing to tell labels apart), and one with too many
// candidates, is left to launch_merge_topk as a whole.
#pragma once

#include "merge_lists.cuh"
#include "merge_scores.cuh"
#include "merge_topk.cuh"

namespace mach {

constexpr int64_t kMaxScanRepetitions = 250;  // sums of bytes in 15 bits, of steps that still mean something
constexpr int64_t kMaxScanK = 1024;

struct MergeScanParams {
  MergeInput<float> merge;
  int64_t k;              // 1 <= k <= kMaxScanK
  Lists lists;            // none where k > kMaxListsK or the merge is not the mean
  const uint16_t* codes;  // [R, code_stride] (label_index.cuh)
  int64_t code_stride;
  const int32_t* list_starts;  // [R, B + 1]
  const int32_t* list_labels;  // [R, L]
  void* scratch;               // scan_scratch_bytes(), aligned to 16
};

int64_t scan_scratch_bytes(int64_t N, int64_t R, int64_t B, int64_t L, int64_t k);

// Leaves the candidates in the scratch and says where.
cudaError_t launch_merge_scan(const MergeScanParams& params, Candidates* candidates, cudaStream_t stream);

}  // namespace mach
