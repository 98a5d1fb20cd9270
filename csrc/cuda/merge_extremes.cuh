// The first kernel of the decode: for each document and repetition the greatest score, its bucket, a low
// score, and the greatest scores of groups of 64 buckets. The scan takes its steps from them, and the lists
// their levels.
#pragma once

#include "merge_scores.cuh"

namespace mach {

constexpr int kPeakRows = 8;  // of a group: 8 neighbouring buckets of every 32, so often

// Groups of a repetition, four for each 256 buckets: group g has buckets g / 4 * 256 + i * 32 + g % 4 * 8 + j
// for i, j in [0, 8).
__host__ __device__ constexpr int64_t num_peaks(int64_t B) { return (B + 255) / 256 * 4; }

struct MergeExtremesParams {
  MergeInput<float> merge;
  float* high;     // [N, R] NaN where a score is NaN or +inf
  float* low;      // [N, R] from -1e30 on, so that distances don't overflow; below high where any score is
  int32_t* best;   // [N, R] the first bucket of score high; in [0, B) in any case
  float* peaks;    // [N, R, num_peaks(B)], or null: the greatest scores of groups
  uint32_t* left;  // [1] set to zero for the kernel of lists
};

cudaError_t launch_merge_extremes(const MergeExtremesParams& params, cudaStream_t stream);

}  // namespace mach
