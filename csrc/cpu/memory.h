// Memory of the CPU operators. What can't be had throws NotEnoughMemory, which says how much it was. The
// entry of an operator (bind/tensors.h, Guarded) puts the operator's name before that.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

namespace mach {

class NotEnoughMemory : public std::bad_alloc {
 public:
  // The text is made at once, in the object: there may be no memory for a string.
  NotEnoughMemory(int64_t bytes, const char* purpose) {
    std::snprintf(text_, sizeof text_, "not enough memory: %lld bytes for %s", static_cast<long long>(bytes),
                  purpose);
  }
  const char* what() const noexcept override { return text_; }

 private:
  char text_[96];
};

// Bytes of that many elements; the greatest number where that is more.
inline int64_t bytes_of(int64_t count, int64_t size) {
  int64_t bytes;
  return __builtin_mul_overflow(count, size, &bytes) ? INT64_MAX : bytes;
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// Not initialised.
template <class T>
std::unique_ptr<T[], Free> uninitialized(int64_t count) {
  const int64_t bytes = bytes_of(count, sizeof(T));
  void* const memory = std::malloc(static_cast<size_t>(bytes > 0 ? bytes : 1));
  if (memory == nullptr) throw NotEnoughMemory(bytes, "scratch");
  return std::unique_ptr<T[], Free>(static_cast<T*>(memory));
}

template <class T>
struct Allocator {
  using value_type = T;
  Allocator() = default;
  template <class U>
  Allocator(const Allocator<U>&) {}
  T* allocate(size_t count) { return uninitialized<T>(static_cast<int64_t>(count)).release(); }
  void deallocate(T* p, size_t) { std::free(p); }
  template <class U>
  bool operator==(const Allocator<U>&) const {
    return true;
  }
  template <class U>
  bool operator!=(const Allocator<U>&) const {
    return false;
  }
};

// std::vector, whose memory says how much it was.
template <class T>
using Array = std::vector<T, Allocator<T>>;

}  // namespace mach
