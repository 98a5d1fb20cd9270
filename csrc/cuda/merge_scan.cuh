// CUDA twin of the CPU's scan (cpu/merge_topk.h), for fp32 scores. It computes upper bounds on the keys of
// all labels, for 16 documents with one load of 16 bytes. The labels that are left get their exact keys in
// launch_merge_topk. README.md in this folder has the whole decode. There are six kernels:
//
//   extremes   finds the greatest score, its bucket and a low score, for each document and repetition, where
//              bucket_forward.cu has not left them.
//   lists      handles documents that do not need the scan (merge_lists.cuh). The others get consecutive
//              places in the scan, so that the scan costs only what they need.
//   sample     computes the exact keys of a sample: the labels of the best buckets and a run of other labels.
//   plan       takes the k-th best of them as the threshold. From it follow the bound and the step, which
//              is the unit of the bytes.
//   table      computes a byte for each score: how far it lies under its repetition's greatest, in steps,
//              rounded down. If the merge is min or median, it is 1 for a score below the threshold, else 0.
//   scan       adds the R bytes of each label, for 16 documents in 8 registers. Labels with sums up to the
//              bound are candidates. A label that is no candidate of any document any more is dropped early.
//
// If the fp32 key of a label reaches the threshold, its sum is at most the bound (see `slack` in
// merge_key.cuh). For some documents this does not hold: those with NaN or +inf, and those whose labels
// cannot be told apart. merge_parts.cuh searches all labels of these, and of documents with too many
// candidates.
#pragma once

#include "merge_lists.cuh"
#include "merge_scores.cuh"
#include "merge_topk.cuh"

namespace mach {

constexpr int64_t kMaxScanRepetitions = 250;  // sums of bytes in 15 bits, of steps that still mean something
constexpr int64_t kMaxScanK = 1024;

// Extremes that are known already, those of launch_merge_extremes.
struct GivenExtremes {
  const float *high, *low;  // [N, R]; high null: not known
  const int32_t* best;      // [N, R]; what is not in [0, B) is taken for 0
  const float* peaks;       // [N, R, num_peaks(B)]
};

struct MergeScanParams {
  MergeInput<float> merge;
  int64_t k;              // 1 <= k <= kMaxScanK
  Lists lists;            // none where k > kMaxListsK or the merge is not the mean
  const uint16_t* codes;  // [R, code_stride] (label_index.cuh)
  int64_t code_stride;
  const int32_t* list_starts;  // [R, B + 1]
  const int32_t* list_labels;  // [R, L]
  GivenExtremes given;
  void* scratch;  // scan_scratch_bytes(), aligned to 16
};

int64_t scan_scratch_bytes(int64_t N, int64_t R, int64_t B, int64_t L, int64_t k);

// Leaves the candidates in the scratch and says where.
cudaError_t launch_merge_scan(const MergeScanParams& params, Candidates* candidates, cudaStream_t stream);

}  // namespace mach
