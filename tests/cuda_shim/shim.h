// What the rooms of the shim share; kernels don't see it.
#pragma once

#include <string>
#include <vector>

#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#define MACH_SHIM_ASAN 1
#else
#define MACH_SHIM_ASAN 0
#endif

namespace mach_shim {

// ------------------------------------------------------------------- asynchronous copies, copies.cpp

// A copy that its thread has not waited for.
struct Copy {
  char* to;
  const char* from;
  unsigned size, zeros;  // bytes, of them 0 at the end
  unsigned group;        // how many were committed before it
  enum class Read { now, at_commit, at_wait, done } read;
  Site site;
  char bytes[16];  // once they are read
};

struct Copies {
  std::vector<Copy> open;  // in the order they were issued
  unsigned committed = 0;  // groups

  void forget() { open.clear(), committed = 0; }
};

// ------------------------------------------------------------------------------ of the thread that runs

Copies& copies_of_thread();
char* shared_memory(size_t& size);
[[noreturn]] void fail_in_fiber(const std::string& what);

// ------------------------------------------------------------------------------------------------ others

std::string where(const Site& site);
uint32_t draw(unsigned below);  // 0 where the seed is 0
void fill(char* begin, char* end);
bool is_filled(const char* begin, const char* end);
void expect_no_copies();  // at the end of a thread

}  // namespace mach_shim
