// What merge_topk on CUDA needs to know of the scores of a document and repetition, as the extremes kernel of
// cuda/merge_extremes.cu leaves it, to the bit. The CPU's own decode does without. This is for tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace mach {

struct RowExtremes {
  float high = -INFINITY, low = INFINITY;
  int32_t best = 0;
};

// Of B >= 1 scores. peaks [(B + 255) / 256 * 4]: bucket b is in group b / 256 * 4 + b % 32 / 8.
inline RowExtremes row_extremes(const float* scores, int64_t B, float* peaks) {
  constexpr int kLanes = 32;
  RowExtremes e;
  bool good = true;
  float least[kLanes];
  std::fill_n(least, kLanes, INFINITY);
  std::fill_n(peaks, (B + 255) / 256 * 4, -INFINITY);
  for (int64_t b = B - 1; b >= 0; --b) {
    const float x = scores[b];
    good = good && x < INFINITY;
    float &peak = peaks[b / 256 * 4 + b % kLanes / 8], &low = least[b % kLanes];
    if (x > peak) peak = x;
    if (x < low) low = x;
    // A repetition of -inf and NaN alone is looked at in its first 256 buckets.
    if (x > e.high || (x == e.high && (x > -INFINITY || b < 256))) {
      e.high = x;
      e.best = static_cast<int32_t>(b);
    }
  }
  const auto lanes = static_cast<int>(std::min<int64_t>(B, kLanes));
  const float lowest = *std::min_element(least, least + kLanes);
  std::sort(least, least + lanes);
  e.low = B < 512 ? least[lanes / 4] : least[kLanes - 1];
  if (!(e.low < e.high)) e.low = lowest;
  e.low = std::max(e.low, -1e30f);
  if (!good) e.high = NAN;
  return e;
}

}  // namespace mach
