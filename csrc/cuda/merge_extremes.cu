#include <algorithm>
#include <climits>
#include <cmath>

#include "device.cuh"
#include "merge_extremes.cuh"

namespace mach {
namespace {

constexpr int kThreads = 256;
constexpr int kTogether = 16;              // loads of a lane that are under way
constexpr int kGroup = kPeakRows * kWarp;  // scores of four groups, a tile
constexpr int kChunk = kTogether * kWarp;  // scores that a warp loads together
constexpr int kFewBuckets = 512;           // below it a lane has too few scores for its least to be low
static_assert(kTogether % kPeakRows == 0, "whole groups");

// What a lane has seen of its scores. NaN is skipped, and shows in `good` alone.
struct Extremes {
  float high = -INFINITY, low = INFINITY;
  int group = 0;     // the first of the lane's groups of 8 rows that has a score of `high`
  bool good = true;  // no NaN, no +inf
};

// A chunk of scores that begins at bucket `first`. kWhole: none of it lies beyond the end.
template <bool kWhole>
__device__ __forceinline__ void take_chunk(const float* scores, int first, int B, float* peaks, Extremes& e) {
  const int lane = lane_id(), left = B - first - lane;
  const float* own = scores + first + lane;
  float x[kTogether];
#pragma unroll
  for (int i = 0; i < kTogether; ++i) x[i] = kWhole || i * kWarp < left ? own[i * kWarp] : -INFINITY;
#pragma unroll
  for (int half = 0; half < kTogether; half += kPeakRows) {
    float peak = -INFINITY;
#pragma unroll
    for (int i = half; i < half + kPeakRows; ++i) {
      e.good = e.good && x[i] < INFINITY;
      peak = fmaxf(peak, x[i]);
      if (kWhole || i * kWarp < left) e.low = fminf(e.low, x[i]);
    }
    const int group = first / kGroup + half / kPeakRows;
    if (peak > e.high) {
      e.high = peak;
      e.group = group;
    }
    if (peaks == nullptr) continue;
    for (int distance = 1; distance < 8; distance *= 2)
      peak = fmaxf(peak, __shfl_xor_sync(kAllLanes, peak, distance));
    if (lane % 8 == 0 && (kWhole || group * kGroup < B)) peaks[group * 4 + lane / 8] = peak;
  }
}

// From the lanes' least scores one that a few outliers don't pull down: the greatest of them where each is
// the least of many scores, else the one that a quarter of the lanes lie below. Where that is not below
// `high`, the least score.
__device__ __forceinline__ float low_score(float least, float high, int B) {
  float low = least;
  if (B < kFewBuckets) {
    const int lanes = B < kWarp ? B : kWarp;  // with buckets; the others hold +inf
    int below = 0;
    for (int lane = 0; lane < lanes; ++lane) {
      const float other = __shfl_sync(kAllLanes, least, lane);
      below += static_cast<int>(other < least) | (static_cast<int>(other == least) & (lane < lane_id()));
    }
    const unsigned chosen = __ballot_sync(kAllLanes, below == lanes / 4);  // several: +inf
    low = __shfl_sync(kAllLanes, least, chosen ? __ffs(static_cast<int>(chosen)) - 1 : 0);
  } else {
    low = warp_max(least);
  }
  if (!(low < high)) low = -warp_max(-least);
  return low > -1e30f ? low : -1e30f;
}

// The first bucket that has the score `high`; 0 where none has. A lane that looks does so among its buckets
// of a tile of 256.
__device__ __forceinline__ int first_bucket(const float* scores, int B, int tile, bool looks, float high) {
  int best = B;
  if (looks)
    for (int i = kPeakRows - 1; i >= 0; --i) {
      const int b = tile * kGroup + i * kWarp + lane_id();
      if (b < B && scores[b] == high) best = b;
    }
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const int other = __shfl_xor_sync(kAllLanes, best, distance);
    best = other < best ? other : best;
  }
  return best < B ? best : 0;
}

// What a warp found of a (document, repetition). good: no lane saw NaN or +inf.
template <class Params>
__device__ __forceinline__ void store_extremes(const Params& p, int64_t row, bool good, float high, float low,
                                               int best) {
  const bool all_good = __all_sync(kAllLanes, good);
  if (lane_id() == 0) {
    p.high[row] = all_good ? high : __int_as_float(0x7fc00000);
    p.low[row] = low;
    p.best[row] = best;
  }
}

// One warp a (document, repetition). Four blocks a multiprocessor: registers for many loads in flight say
// more than more warps.
__global__ void __launch_bounds__(kThreads, 4) extremes_kernel(const MergeExtremesParams p) {
  const MergeInput<float>& m = p.merge;
  const int B = static_cast<int>(m.B), groups = static_cast<int>(num_peaks(m.B));
  if (blockIdx.x == 0 && threadIdx.x == 0) *p.left = 0;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + warp_id(); row < m.N * m.R;
       row += warps) {
    const int64_t n = row / m.R;
    const float* scores = m.scores + n * m.document_stride + (row - n * m.R) * m.repetition_stride;
    float* peaks = p.peaks ? p.peaks + row * groups : nullptr;
    Extremes e;
    int first = 0;
    for (; first + kChunk <= B; first += kChunk) take_chunk<true>(scores, first, B, peaks, e);
    if (first < B) take_chunk<false>(scores, first, B, peaks, e);
    const float high = warp_max(e.high), low = low_score(e.low, high, B);
    const int best = first_bucket(scores, B, e.group, e.high == high, high);
    store_extremes(p, row, e.good, high, low, best);
  }
}

// One warp a (document, repetition), a lane for the buckets b with b % 32 = lane, as above. Peaks tell which
// tile has the greatest score first, and which lanes have to look for it there.
__global__ void __launch_bounds__(kThreads) tile_extremes_kernel(const TileExtremesParams p) {
  const int B = static_cast<int>(p.B), groups = static_cast<int>(num_peaks(p.B)), tiles = groups / kTilePeaks;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + warp_id(); row < p.rows;
       row += warps) {
    const float *peaks = p.tiles.peaks + row * groups, *tile_least = p.tiles.least + row * tiles * kWarp;
    const int32_t* faulty = p.tiles.faulty + row * tiles;
    float least = INFINITY, own_high = -INFINITY;
    int first = 0;
    bool good = true;
#pragma unroll 4
    for (int t = 0; t < tiles; ++t) least = fminf(least, tile_least[t * kWarp + lane_id()]);
    for (int t = lane_id(); t < tiles; t += kWarp) good = good && faulty[t] == 0;
    for (int group = lane_id(); group < groups; group += kWarp)
      if (peaks[group] > own_high) {
        own_high = peaks[group];
        first = group / kTilePeaks;
      }
    const float high = warp_max(own_high), low = low_score(least, high, B);
    const int tile = -warp_max(own_high == high ? -first : INT_MIN);
    const bool looks = peaks[tile * kTilePeaks + lane_id() / kPeakRows] == high;
    store_extremes(p, row, good, high, low, first_bucket(p.scores + row * B, B, tile, looks, high));
  }
}

}  // namespace

cudaError_t launch_tile_extremes(const TileExtremesParams& params, cudaStream_t stream) {
  constexpr int64_t kRows = kThreads / kWarp;
  const int64_t blocks = (params.rows + kRows - 1) / kRows;
  if (blocks == 0) return cudaSuccess;
  return MACH_LAUNCH(tile_extremes_kernel, static_cast<unsigned>(std::min<int64_t>(blocks, 1 << 20)),
                     kThreads, 0, stream, params);
}

cudaError_t launch_merge_extremes(const MergeExtremesParams& params, cudaStream_t stream) {
  constexpr int64_t kRows = kThreads / kWarp;
  const int64_t blocks = (params.merge.N * params.merge.R + kRows - 1) / kRows;
  return MACH_LAUNCH(extremes_kernel, static_cast<unsigned>(std::min<int64_t>(blocks, 1 << 20)), kThreads, 0,
                     stream, params);
}

}  // namespace mach
