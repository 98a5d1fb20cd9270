#include "label_index.h"

#include <algorithm>
#include <atomic>

namespace mach {

bool label_index(const int32_t* buckets, int64_t R, int64_t B, int64_t L, uint16_t* codes,
                 int32_t* list_starts, int32_t* list_labels, const Tasks& run_tasks) {
  constexpr int64_t kBlock = 1024;  // labels whose codes are written together, within the cache
  std::atomic<bool> in_range{true};
  run_tasks((L + kBlock - 1) / kBlock, [&](int64_t block) {
    const int64_t begin = block * kBlock, end = std::min(L, begin + kBlock);
    bool good = true;
    for (int64_t r = 0; r < R; ++r)
      for (int64_t l = begin; l < end; ++l) {
        const int32_t bucket = buckets[r * L + l];
        good &= bucket >= 0 && bucket < B;
        codes[l * R + r] = static_cast<uint16_t>(bucket);
      }
    if (!good) in_range = false;
  });
  if (!in_range) return false;
  run_tasks(R, [&](int64_t r) {  // counting sort
    const int32_t* bucket = buckets + r * L;
    int32_t* starts = list_starts + r * (B + 1);
    std::fill(starts, starts + B + 1, 0);
    for (int64_t l = 0; l < L; ++l) ++starts[bucket[l] + 1];
    for (int64_t b = 0; b < B; ++b) starts[b + 1] += starts[b];
    // starts[b] is b's next free slot, which leaves it at the start of b + 1: shift back.
    for (int64_t l = 0; l < L; ++l) list_labels[r * L + starts[bucket[l]]++] = static_cast<int32_t>(l);
    for (int64_t b = B; b > 0; --b) starts[b] = starts[b - 1];
    starts[0] = 0;
  });
  return true;
}

}  // namespace mach
