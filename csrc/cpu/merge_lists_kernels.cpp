#include "merge_lists_kernels.h"

namespace mach {

template <class Isa>
int64_t add_saturating(const int32_t* labels, int64_t count, int64_t first, int64_t stop, uint8_t* sums,
                       int amount) {
  int64_t i = 0;
  const auto start = static_cast<uint32_t>(first), width = static_cast<uint32_t>(stop - first);
  for (; i < count; ++i) {
    const uint32_t place = static_cast<uint32_t>(labels[i]) - start;
    if (place >= width) break;
    uint8_t& at = sums[place];
    const int sum = at + amount;
    at = static_cast<uint8_t>(sum < 255 ? sum : 255);
  }
  return i;
}

template <class Isa>
int64_t take_at_least(uint8_t* sums, int64_t count, uint8_t bound, int32_t* positions) {
  constexpr int kBlock = 128;
  int64_t found = 0, i = 0;
  for (; i + kBlock <= count; i += kBlock) {
    uint8_t any = 0;
    for (int j = 0; j < kBlock; ++j) any |= static_cast<uint8_t>(sums[i + j] >= bound);
    if (any)
      for (int j = 0; j < kBlock; ++j) {
        positions[found] = static_cast<int32_t>(i + j);
        found += sums[i + j] >= bound;
      }
    __builtin_memset(sums + i, 0, kBlock);
  }
  for (; i < count; ++i) {
    positions[found] = static_cast<int32_t>(i);
    found += sums[i] >= bound;
    sums[i] = 0;
  }
  return found;
}

#define MACH_MERGE_LISTS(ISA)                                                                     \
  template int64_t add_saturating<ISA>(const int32_t*, int64_t, int64_t, int64_t, uint8_t*, int); \
  template int64_t take_at_least<ISA>(uint8_t*, int64_t, uint8_t, int32_t*);
MACH_MERGE_LISTS(MACH_ISA)

}  // namespace mach
