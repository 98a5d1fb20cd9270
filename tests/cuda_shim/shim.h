// What the rooms of the shim share; kernels don't see it.
//   fibers.cpp    a fiber's stack and registers; which thread of which block goes on
//   meetings.cpp  barriers and collectives
//   copies.cpp    asynchronous copies
//   memory.cpp    shared memory and its guards
//   races.cpp     accesses that nothing orders, in the build that sees all of them
//   report.cpp    what a fault says; memory that is not there
//   launch.cpp    a launch from its checks to its end, the device, the interface for Python
#pragma once

#include <set>
#include <string>
#include <vector>

#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#define MACH_SHIM_ASAN 1
#else
#define MACH_SHIM_ASAN 0
#endif
#if !defined(__x86_64__) || defined(MACH_SHIM_UCONTEXT)
#include <ucontext.h>
#define MACH_SHIM_SWITCH 0
#else
#define MACH_SHIM_SWITCH 1
#endif

namespace mach_shim {

constexpr unsigned kMaxThreads = 1024;  // of a block
constexpr unsigned kMaxResident = 4;    // blocks at the same time
constexpr size_t kMaxShared =
    227 << 10;  // of sm_90 and sm_100; what the device has, shared_limit, may be less
constexpr size_t kStack = MACH_SHIM_ASAN ? 256 << 10 : 64 << 10;
constexpr size_t kPage = 4096;

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
void expect_no_copies();  // at the end of a thread

// --------------------------------------------------------------------- blocks and threads, fibers.cpp

#if MACH_SHIM_SWITCH
using Context = void*;
#else
using Context = ucontext_t;
#endif

struct Fiber {
  Context context;
  char* stack = nullptr;       // kStack bytes above a page that can't be touched
  void* fake_stack = nullptr;  // ASan's

  void prepare();
};

struct Meeting_ : Meeting {
  const char* what;
  Site site;
  unsigned arrived, to_leave;
};

struct Warp {
  Meeting_ meetings[32];  // a lane is in at most one
  unsigned open, used;    // bit for each of them: lanes still to arrive, lanes still to arrive or leave
};

struct Thread {
  uint3 index;
  Fiber* fiber = nullptr;
  const char* waits = nullptr;  // for what, where and with whom; null: not
  Site site;
  unsigned mask;
  bool ended = false;
  Copies copies;
};

struct Barrier {
  unsigned arrived;
  int total;
  int result;
  const char* what;
  Site site;
};

// One that is there now, and its part of the device.
struct Block {
  bool live = false;
  uint3 index;
  uint32_t number;  // of those of the launch
  unsigned num_alive;
  Thread threads[kMaxThreads];
  Warp warps[kMaxThreads / 32];
  Barrier barrier;
  unsigned ready[kMaxThreads], ready_begin, ready_size;  // ring
  unsigned num_preemptions;
  char* shared;
  char* shared_end = nullptr;  // of the room for the largest; the guard follows

  unsigned slot() const;
  Thread& current_thread();
};

// The launch that runs; one at a time in the process.
struct Launch {
  const char* kernel;
  void (*body)(void*);
  void* data;
  unsigned num_threads;
  unsigned num_live;  // blocks
  size_t shared_size;
  uint64_t switches;
  std::set<uint64_t> busy;  // blocks that were preempted
  uint64_t random;          // state of the generator
  std::string fault;
};

extern Launch launch_;
extern Block blocks[kMaxResident];
extern Block* here;       // the block and
extern unsigned current;  // its thread that runs
extern bool in_fiber;
extern uint64_t seed;
extern const size_t shared_limit;

inline unsigned Block::slot() const { return static_cast<unsigned>(this - blocks); }
inline Thread& Block::current_thread() { return threads[current]; }

inline uint64_t draw_bits() {  // splitmix64
  uint64_t z = (launch_.random += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}
inline unsigned draw(unsigned below) {  // 0 where the seed is 0
  return seed ? static_cast<unsigned>((draw_bits() >> 32) * below >> 32) : 0;
}
void draw_preemption();

void make_ready(unsigned t);    // of this block
void wait();                    // another thread goes on until this one is ready
void leave_fiber();             // for the launch, for good
void resume();                  // from the launch: the current thread
void choose_next();             // block and thread
void give_fibers_back(Block&);  // of threads that will not go on
bool is_on_stack(const void*);  // of some fiber
constexpr unsigned kMaxPreemptions = 4'000'000;

// --------------------------------------------------------------------------- shared memory, memory.cpp

constexpr size_t kGuard = 64 * kPage;  // not to be touched, behind it
void open_shared(Block&);
void close_shared(Block&);
void fill(char* begin, char* end);  // with poison
bool is_filled(const char* begin, const char* end);

// --------------------------------------------------------------------------------- reports, report.cpp

std::string text(const uint3& v);
std::string text(const dim3& v);
std::string where(const Site& site);
std::string head();
std::string stuck();  // who waits for what, when nobody of the block can go on
[[noreturn]] void fail_in_fiber(const std::string& what);

// While it lives, touching memory that is not there ends the launch with a report.
class Signals {
 public:
  Signals();
  ~Signals();
};

// ----------------------------------------------------------------------------------- races, races.cpp

#ifdef MACH_SHIM_RACES
constexpr bool kRaces = true;
#else
constexpr bool kRaces = false;
#endif
enum class Access { read, write, relaxed_read, atomic, accumulate, take };
void races_begin_launch();
void races_begin_block();
void races_barrier();                                 // all threads of the block
void races_sync_warp(unsigned first, unsigned mask);  // lanes of the warp from thread `first`
void races_access(const void* at, size_t size, Access, const void* place);

}  // namespace mach_shim
