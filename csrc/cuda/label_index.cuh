// CUDA twin of cpu/label_index.h: what merge_topk wants to know of a label hash. Built once, around a library
// sort of each repetition's buckets.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../merge_kind.h"

namespace mach {

// Labels in a row of codes: eight of them are read with one load.
constexpr int64_t padded_labels(int64_t L) { return (L + 7) / 8 * 8; }

struct LabelCodesParams {
  const int32_t* buckets;  // [R, L]
  int64_t R, B, L;
  uint16_t* codes;   // [R, stride]: repetition-major, so that neighbouring labels' codes are read together;
                     // rows are padded with code 0
  int64_t stride;    // padded_labels(L)
  uint32_t* faults;  // [1], zero on entry: not zero where a bucket is not in [0, B); its code is the greatest
};
cudaError_t launch_label_codes(const LabelCodesParams& params, cudaStream_t stream);

// Of one repetition.
struct LabelListsParams {
  const int32_t* sorted;  // [L] buckets, ascending
  const int64_t* labels;  // [L] where they came from
  int64_t B, L;
  int32_t* list_starts;  // [B + 1]
  int32_t* list_labels;  // [L]
};
cudaError_t launch_label_lists(const LabelListsParams& params, cudaStream_t stream);

}  // namespace mach
