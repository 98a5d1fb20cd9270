#include "merge_table.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdlib>
#include <utility>

namespace mach {

uint8_t* Table::of(int64_t bytes) {
  if (bytes > size_) {
    constexpr int64_t kHuge = 2 << 20;
    size_ = (bytes + kHuge - 1) / kHuge * kHuge;
    memory_.reset();
    memory_.reset(static_cast<uint8_t*>(std::aligned_alloc(kHuge, size_)));
    if (memory_ == nullptr) throw NotEnoughMemory(std::exchange(size_, 0), "a table");
#if defined(__linux__)
    madvise(memory_.get(), size_, MADV_HUGEPAGE);
#endif
  }
  return memory_.get();
}

void Table::release_large() {
  if (size_ <= kTableBytes + kMaxCodes * kWidth) return;
  memory_.reset();
  size_ = 0;
}

Table& own_table() {
  thread_local Table table;
  return table;
}

}  // namespace mach
