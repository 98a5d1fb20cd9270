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

constexpr int kTilePeaks = 4;  // groups of a tile of 256 buckets

// What bucket_forward.cu leaves of tiles of 256 buckets, T = num_peaks(B) / kTilePeaks of them.
struct TileExtremes {
  float* peaks;     // [N, R, num_peaks(B)] as above
  float* least;     // [N, R, T, 32] the least score of the tile's buckets b with b % 32 = i; +inf: none
  int32_t* faulty;  // [N, R, T] whether a score is NaN or +inf
};

// The same high, low and best as those of launch_merge_extremes, from tiles. Of the scores only those of a
// few groups are read.
struct TileExtremesParams {
  const float* scores;  // [N, R, B] contiguous
  int64_t rows, B;      // rows: N R
  TileExtremes tiles;   // read
  float* high;          // [N, R]
  float* low;           // [N, R]
  int32_t* best;        // [N, R]
};

cudaError_t launch_tile_extremes(const TileExtremesParams& params, cudaStream_t stream);

}  // namespace mach
