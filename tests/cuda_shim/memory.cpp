// Shared memory, exactly as large as asked for, filled with poison for each block, and followed by pages that
// can't be touched (by ASan's red zone under ASan). Each block that is there has its own.
#include <sys/mman.h>

#include <cstdlib>
#include <stdexcept>

#include "shim.h"

namespace mach_shim {
namespace {

char poison_at(const char* p) {
  return static_cast<char>(kPoison >> (8 * (reinterpret_cast<uintptr_t>(p) & 3)));
}

}  // namespace

void fill(char* begin, char* end) {
  for (; begin < end && reinterpret_cast<uintptr_t>(begin) % 4; ++begin) *begin = poison_at(begin);
  for (; end - begin >= 4; begin += 4) std::memcpy(begin, &kPoison, 4);
  for (; begin < end; ++begin) *begin = poison_at(begin);
}

void poison(void* begin, size_t bytes) { fill(static_cast<char*>(begin), static_cast<char*>(begin) + bytes); }

bool is_filled(const char* begin, const char* end) {
  for (; begin < end; ++begin)
    if (*begin != poison_at(begin)) return false;
  return true;
}

#if MACH_SHIM_ASAN
void open_shared(Block& block) {
  block.shared = static_cast<char*>(std::malloc(launch_.shared_size));
  fill(block.shared, block.shared + launch_.shared_size);
}
void close_shared(Block& block) { std::free(block.shared); }
#else
constexpr size_t kCanary = 64;  // bytes of poison kept in front of the shared memory

void open_shared(Block& block) {
  if (block.shared_end == nullptr) {
    const size_t room = (kMaxShared + kCanary + kPage) / kPage * kPage;
    void* mapped = mmap(nullptr, room + kGuard, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED || mprotect(mapped, room, PROT_READ | PROT_WRITE) != 0)
      throw std::runtime_error("cuda shim: no memory for shared memory");
    block.shared_end = static_cast<char*>(mapped) + room;
  }
  block.shared = block.shared_end - (launch_.shared_size + 15) / 16 * 16;
  fill(block.shared - kCanary, block.shared_end);
}

void close_shared(Block& block) {
  if (!is_filled(block.shared - kCanary, block.shared))
    launch_.fault = head() + "wrote in front of its shared memory";
  if (!is_filled(block.shared + launch_.shared_size, block.shared_end))
    launch_.fault = head() + "wrote behind its shared memory";
}
#endif

void* dynamic_shared() { return here->shared; }

}  // namespace mach_shim
