// Runs a kernel's blocks one after the other, the threads of each as fibers on the calling thread.
//
// A fiber runs until it waits for others, ends, or (sometimes) does an atomic operation; then one of those
// that can go on is resumed, which one is drawn from a generator seeded by the seed, the kernel and the shape
// of the launch. Seed 0: in order of threads and blocks.
// Shared memory is exactly as large as asked for, filled with poison for each block, and followed by pages
// that can't be touched (by ASan's red zone under ASan).
// MACH_SHIM_SHARED_KB: a device with less of it (64: sm_75, 99: sm_86 and sm_89, 163: sm_80).
// Held to more than the hardware asks, so that what passes is portable: every thread of the block reaches
// the same __syncthreads; every lane that a mask names exists and comes to the same collective with the same
// mask. Faults end the launch with std::runtime_error, which says who waits for what and where.
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <mutex>
#include <numeric>
#include <set>
#include <stdexcept>
#include <string>

#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
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

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace mach_shim {

unsigned until_preempted = 0;

namespace {

constexpr unsigned kMaxThreads = 1024;
constexpr size_t kMaxShared =
    227 << 10;  // of sm_90 and sm_100; what the device has, shared_limit, may be less
constexpr size_t kStack = MACH_SHIM_ASAN ? 256 << 10 : 64 << 10;
constexpr size_t kPage = 4096;
constexpr size_t kCanary = 64;         // bytes of poison kept in front of the shared memory
constexpr size_t kGuard = 64 * kPage;  // not to be touched, behind it

// ----------------------------------------------------------------------------------------- one fiber

#if MACH_SHIM_SWITCH
extern "C" void mach_shim_switch(void** save, void* load) __attribute__((visibility("hidden")));
// Callee-saved registers on the stack, then the stack pointers change places.
asm(R"(
.text
.hidden mach_shim_switch
.globl mach_shim_switch
.type mach_shim_switch, @function
mach_shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size mach_shim_switch, .-mach_shim_switch
)");
using Context = void*;
void switch_context(Context& save, Context& load) { mach_shim_switch(&save, load); }
#else
using Context = ucontext_t;
void switch_context(Context& save, Context& load) { swapcontext(&save, &load); }
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
};

// The launch that runs; one at a time in the process.
std::mutex one_launch;
Thread threads[kMaxThreads];
Warp warps[kMaxThreads / 32];
Fiber fibers[kMaxThreads];  // their stacks are made when first needed and kept
Fiber* idle[kMaxThreads];
unsigned num_fibers = 0, num_idle = 0;
unsigned num_threads, num_alive, current;
bool scheduler_starts;  // the current thread, which has no fiber yet
Context scheduler;
bool in_fiber = false;
std::string fault;
const char* kernel_name;
void (*body)(void*);
void* body_data;

unsigned ready[kMaxThreads], ready_begin, ready_size;  // ring
struct {
  unsigned arrived;
  int total;
  int result;
  const char* what;
  Site site;
} at_barrier;

char* shared;
size_t shared_size;

uint64_t setting(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text ? std::strtoull(text, nullptr, 10) : otherwise;
}
uint64_t seed = setting("MACH_SHIM_SEED", 0);
const size_t shared_limit = std::min<size_t>(setting("MACH_SHIM_SHARED_KB", 227) << 10, kMaxShared);
uint64_t state;
uint64_t draw() {  // splitmix64
  uint64_t z = (state += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}
unsigned draw(unsigned below) { return static_cast<unsigned>((draw() >> 32) * below >> 32); }
void draw_preemption() { until_preempted = seed ? 1 + draw(16) : 64; }

struct Totals {
  uint64_t launches = 0, blocks = 0, threads = 0, switches = 0;
  uint64_t busy = 0;  // blocks that did some 64 atomic operations, which tells of work
};
std::set<uint64_t> busy;  // blocks of this launch
std::deque<std::string> events;
std::map<std::string, Totals> totals;
uint64_t num_switches;
unsigned num_preemptions;  // of the block
constexpr unsigned kMaxPreemptions = 4'000'000;
std::string last_error;

// ---------------------------------------------------------------------------------------- scheduling

void make_ready(unsigned t) {
  threads[t].waits = nullptr;
  ready[(ready_begin + ready_size++) % kMaxThreads] = t;
}

unsigned next_ready() {
  if (seed) std::swap(ready[ready_begin], ready[(ready_begin + draw(ready_size)) % kMaxThreads]);
  const unsigned t = ready[ready_begin];
  ready_begin = (ready_begin + 1) % kMaxThreads;
  --ready_size;
  return t;
}

void set_current(unsigned t) {
  current = t;
  threadIdx = threads[t].index;
}

// From one fiber to another or, where there is none, to the scheduler; `from` null: from the scheduler.
#if MACH_SHIM_ASAN
const void* scheduler_stack;
size_t scheduler_stack_size;
bool from_scheduler;

void arrived(void* fake_stack) {
  const void* stack;
  size_t size;
  __sanitizer_finish_switch_fiber(fake_stack, &stack, &size);
  if (from_scheduler) scheduler_stack = stack, scheduler_stack_size = size;
}
void switch_fiber(Fiber* from, Fiber* to) {
  void* fake_stack;
  from_scheduler = from == nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, to ? to->stack : scheduler_stack,
                                 to ? kStack : scheduler_stack_size);
  in_fiber = to != nullptr;
  switch_context(from ? from->context : scheduler, to ? to->context : scheduler);
  arrived(fake_stack);
}
#else
void arrived(void*) {}
void switch_fiber(Fiber* from, Fiber* to) {
  in_fiber = to != nullptr;
  switch_context(from ? from->context : scheduler, to ? to->context : scheduler);
}
#endif

// The current thread waits (or is in the queue of those that are ready, too).
void wait() {
  Fiber* const self = threads[current].fiber;
  Fiber* next = nullptr;
  if (ready_size > 0) {
    set_current(next_ready());
    Thread& thread = threads[current];
    if (thread.fiber == nullptr && num_idle > 0) thread.fiber = idle[--num_idle];
    next = thread.fiber;  // none: one has to be made, by the scheduler
    if (next == self) return;
    scheduler_starts = next == nullptr;
  }
  ++num_switches;
  switch_fiber(self, next);
}

// One thread after another runs on a fiber.
void fiber_main() {
  arrived(nullptr);
  for (;;) {
    body(body_data);
    Thread& ended = threads[current];
    Fiber* const self = ended.fiber;
    ended.ended = true;
    ended.fiber = nullptr;
    --num_alive;
    Fiber* next = nullptr;
    if (ready_size > 0) {
      set_current(next_ready());
      Thread& thread = threads[current];
      if (thread.fiber == nullptr) {
        thread.fiber = self;
        continue;
      }
      next = thread.fiber;
    }
    idle[num_idle++] = self;
    ++num_switches;
    switch_fiber(self, next);
  }
}

void Fiber::prepare() {
  if (stack == nullptr) {
    void* mapped = mmap(nullptr, kStack + kPage, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED || mprotect(mapped, kPage, PROT_NONE) != 0)
      throw std::runtime_error("cuda shim: no memory for the stacks of fibers");
    stack = static_cast<char*>(mapped) + kPage;
  }
#if MACH_SHIM_ASAN
  __asan_unpoison_memory_region(stack, kStack);
#endif
  fake_stack = nullptr;
  const size_t colour = (this - fibers) % 16 * 256;  // else all tops of stacks share a few sets of the cache
#if MACH_SHIM_SWITCH
  void** top = reinterpret_cast<void**>(stack + kStack - colour);
  *--top = nullptr;  // where fiber_main would return to
  *--top = reinterpret_cast<void*>(&fiber_main);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context = top;
#else
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = kStack - colour;
  context.uc_link = nullptr;
  makecontext(&context, &fiber_main, 0);
#endif
}

// ------------------------------------------------------------------------------------------- reports

std::string text(const uint3& v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}
std::string text(const dim3& v) { return text(uint3{v.x, v.y, v.z}); }

std::string where(const Site& site) {
  const std::string file = site.file;
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line);
}

std::string head() {
  return "cuda shim: kernel " + std::string(kernel_name) + ", grid " + text(gridDim) + " x block " +
         text(blockDim) + ", seed " + std::to_string(seed) + ", block " + text(blockIdx) + ": ";
}

[[noreturn]] void fail_in_fiber(const std::string& what) {
  fault = head() + "thread " + text(threads[current].index) + " " + what;
  switch_fiber(threads[current].fiber, nullptr);
  std::abort();
}

// Who waits for what, when nobody can go on.
std::string stuck() {
  std::string out = head() + "not all threads can go on";
  const auto doing = [](unsigned t) {
    char buffer[64];
    const Thread& thread = threads[t];
    if (thread.ended) return std::string("ended");
    std::string wait = std::string("in ") + thread.waits;
    if (thread.mask) {
      std::snprintf(buffer, sizeof buffer, ", mask 0x%08x", thread.mask);
      wait += buffer;
    }
    return wait + ", " + where(thread.site);
  };
  for (unsigned begin = 0, end; begin < num_threads; begin = end) {
    const std::string what = doing(begin);
    for (end = begin + 1; end < num_threads && doing(end) == what;) ++end;
    out += "\n  thread" +
           (end - begin == 1 ? " " + std::to_string(begin)
                             : "s " + std::to_string(begin) + "-" + std::to_string(end - 1)) +
           ": " + what;
  }
  return out;
}

char poison_at(const char* p) {
  return static_cast<char>(kPoison >> (8 * (reinterpret_cast<uintptr_t>(p) & 3)));
}
void fill(char* begin, char* end) {
  for (; begin < end && reinterpret_cast<uintptr_t>(begin) % 4; ++begin) *begin = poison_at(begin);
  for (; end - begin >= 4; begin += 4) std::memcpy(begin, &kPoison, 4);
  for (; begin < end; ++begin) *begin = poison_at(begin);
}

#if MACH_SHIM_ASAN
void open_shared() {
  shared = static_cast<char*>(std::malloc(shared_size));
  fill(shared, shared + shared_size);
}
void close_shared() { std::free(shared); }
#else
char* arena = nullptr;  // end of the room for the largest shared memory; kGuard follows

void open_shared() {
  if (arena == nullptr) {
    const size_t room = (kMaxShared + kCanary + kPage) / kPage * kPage;
    void* mapped = mmap(nullptr, room + kGuard, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED || mprotect(mapped, room, PROT_READ | PROT_WRITE) != 0)
      throw std::runtime_error("cuda shim: no memory for shared memory");
    arena = static_cast<char*>(mapped) + room;
  }
  shared = arena - (shared_size + 15) / 16 * 16;
  fill(shared - kCanary, arena);
}

bool is_filled(const char* begin, const char* end) {
  for (; begin < end; ++begin)
    if (*begin != poison_at(begin)) return false;
  return true;
}
void close_shared() {
  if (!is_filled(shared - kCanary, shared)) fault = head() + "wrote in front of its shared memory";
  if (!is_filled(shared + shared_size, arena)) fault = head() + "wrote behind its shared memory";
}
#endif

void run_block() {
  ready_begin = ready_size = num_preemptions = 0;
  at_barrier.arrived = 0;
  at_barrier.total = 0;
  for (unsigned w = 0; w <= (num_threads - 1) / 32; ++w) warps[w].open = warps[w].used = 0;
  for (unsigned t = 0; t < num_threads; ++t) {
    threads[t].ended = false;
    make_ready(t);
  }
  num_alive = num_threads;
  set_current(next_ready());
  scheduler_starts = true;
  while (scheduler_starts) {
    Thread& thread = threads[current];
    if (num_idle > 0) {
      thread.fiber = idle[--num_idle];
    } else {
      fibers[num_fibers].prepare();
      thread.fiber = &fibers[num_fibers++];
    }
    scheduler_starts = false;
    switch_fiber(nullptr, thread.fiber);
  }
  if (fault.empty() && num_alive > 0) fault = stuck();
}

// While a kernel runs, touching memory that is not there ends the launch with a report. ASan has its own,
// and ends the process; what is added to it is which thread it was.
#if MACH_SHIM_ASAN
class Signals {
 public:
  Signals() {
    __sanitizer_set_death_callback([] {
      if (in_fiber)
        std::fprintf(stderr, "%sthread %s\n", head().c_str(), text(threads[current].index).c_str());
    });
  }
  ~Signals() {}
};
#else
class Signals {
 public:
  Signals() {
    static char stack[64 << 10];
    stack_t mine{};
    mine.ss_sp = stack;
    mine.ss_size = sizeof stack;
    sigaltstack(&mine, &stack_before_);
    struct sigaction action{};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // the handler is left without a return
    sigaction(SIGSEGV, &action, &before_[0]);
    sigaction(SIGBUS, &action, &before_[1]);
  }
  ~Signals() {
    sigaction(SIGSEGV, &before_[0], nullptr);
    sigaction(SIGBUS, &before_[1], nullptr);
    sigaltstack(&stack_before_, nullptr);
  }

 private:
  static void handle(int signal, siginfo_t* info, void*) {
    if (!in_fiber) {  // not a kernel's: as it would have been
      sigaction(signal, &before_[signal == SIGBUS], nullptr);
      return;
    }
    const char* at = static_cast<const char*>(info->si_addr);
    const Fiber& f = *threads[current].fiber;
    char buffer[128];
    if (at >= arena && at < arena + kGuard)
      std::snprintf(buffer, sizeof buffer, "touches byte %zu of its %zu bytes of shared memory",
                    static_cast<size_t>(at - shared), shared_size);
    else if (at < f.stack && at >= f.stack - kPage)
      std::snprintf(buffer, sizeof buffer, "needs a stack of more than %zu bytes", kStack);
    else
      std::snprintf(buffer, sizeof buffer, "touches memory that is not there, at %p", info->si_addr);
    fail_in_fiber(buffer);
  }

  static inline struct sigaction before_[2];
  stack_t stack_before_;
};
#endif

std::string plain(const char* name) {  // (kernel<T, 3>) -> kernel
  std::string out = name;
  while (!out.empty() && (out[0] == '(' || out[0] == ' ')) out.erase(0, 1);
  return out.substr(0, out.find_first_of("<) "));
}

}  // namespace

cudaError_t run(const char* name_, dim3 grid, dim3 block, size_t shared_bytes, void (*body_)(void*),
                void* data) {
  const std::lock_guard<std::mutex> lock(one_launch);
  const std::string name = plain(name_);
  const uint64_t per_block = uint64_t{block.x} * block.y * block.z;
  const auto refuse = [&](cudaError_t error, const char* why) {
    last_error = "cuda shim: kernel " + name + ", grid " + text(grid) + " x block " + text(block) + ", " +
                 std::to_string(shared_bytes) + " bytes of shared memory: " + why;
    return error;
  };
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || per_block == 0)
    return refuse(cudaErrorInvalidConfiguration, "invalid configuration: an extent is 0");
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    return refuse(cudaErrorInvalidConfiguration,
                  "invalid configuration: grid beyond (2^31 - 1, 65535, 65535)");
  if (block.x > 1024 || block.y > 1024 || block.z > 64 || per_block > kMaxThreads)
    return refuse(cudaErrorInvalidConfiguration, "invalid configuration: more than 1024 threads a block");
  if (shared_bytes > shared_limit)
    return refuse(cudaErrorInvalidValue, "invalid value: more shared memory than a block can have");

  gridDim = grid;
  blockDim = block;
  kernel_name = name.c_str();
  body = body_;
  body_data = data;
  shared_size = shared_bytes;
  num_threads = static_cast<unsigned>(per_block);
  num_switches = 0;
  busy.clear();
  note(kernel_name);
  state = seed;
  for (char c : name) state = state * 31 + static_cast<unsigned char>(c);
  state = state * 31 + grid.x;
  state = state * 31 + block.x;
  draw_preemption();
  for (unsigned t = 0; t < num_threads; ++t)
    threads[t].index = {t % block.x, t / block.x % block.y, t / (block.x * block.y)};

  // Block i is block (first + i * step) mod n; seed 0: i.
  const uint64_t n = uint64_t{grid.x} * grid.y * grid.z;
  uint64_t at = 0, step = 1;
  if (seed) {
    at = draw() % n;
    do step = n > 2 ? 1 + draw() % (n - 1) : 1;
    while (std::gcd(step, n) != 1);
  }
  {
    const Signals signals;
    for (uint64_t i = 0; i < n && fault.empty(); ++i, at = (at + step) % n) {
      blockIdx = {static_cast<unsigned>(at % grid.x), static_cast<unsigned>(at / grid.x % grid.y),
                  static_cast<unsigned>(at / grid.x / grid.y)};
      open_shared();
      run_block();
      if (fault.empty()) close_shared();
    }
  }
  if (!fault.empty()) {  // fibers that will not go on start anew
    for (unsigned t = 0; t < num_threads; ++t) {
      if (threads[t].fiber == nullptr) continue;
      threads[t].fiber->prepare();
      idle[num_idle++] = threads[t].fiber;
      threads[t].fiber = nullptr;
    }
    const std::string what = std::move(fault);
    fault.clear();
    throw std::runtime_error(what);
  }
  Totals& total = totals[name];
  ++total.launches;
  total.blocks += n;
  total.threads += n * num_threads;
  total.switches += num_switches;
  total.busy += busy.size();
  return cudaSuccess;
}

void note(const char* event) {
  if (events.size() == 1000) events.pop_front();
  events.push_back(event);
}

void* dynamic_shared() { return shared; }

int lane() { return static_cast<int>(current % 32); }

int barrier(const char* what, bool predicate, Count count, Site site) {
  auto& b = at_barrier;
  if (b.arrived == 0) b.what = what, b.site = site;
  if (b.arrived > 0 && (b.what != what || b.site.file != site.file || b.site.line != site.line)) {
    Thread& self = threads[current];
    self.waits = what, self.site = site, self.mask = 0;
    wait();  // for good: the others wait at another barrier
  }
  b.total += predicate;
  ++b.arrived;
  if (b.arrived == num_threads) {
    b.result = count == Count::total ? b.total
               : count == Count::any ? b.total > 0
                                     : b.total == int(num_threads);
    b.arrived = 0;
    b.total = 0;
    for (unsigned t = 0; t < num_threads; ++t) make_ready(t);
    wait();
  } else {
    Thread& self = threads[current];
    self.waits = what, self.site = site, self.mask = 0;
    wait();
  }
  return b.result;
}

Meeting& meet(const char* what, unsigned mask, uint64_t value, Site site) {
  const unsigned self = current % 32, bit = 1u << self, first = current - self;
  Warp& warp = warps[current / 32];
  Thread& thread = threads[current];
  if (!(mask & bit)) {
    char buffer[32];
    std::snprintf(buffer, sizeof buffer, "0x%08x", mask);
    fail_in_fiber("calls " + std::string(what) + " with mask " + buffer + ", in which it is not, " +
                  where(site));
  }
  int i = -1;
  for (unsigned open = warp.open; open; open &= open - 1) {
    const Meeting_& m = warp.meetings[__builtin_ctz(open)];
    if (m.mask == mask && m.what == what && m.site.line == site.line && m.site.file == site.file) {
      i = __builtin_ctz(open);
      break;
    }
  }
  if (i < 0) {
    i = __builtin_ctz(~warp.used);
    warp.used |= 1u << i;
    warp.open |= 1u << i;
    Meeting_& m = warp.meetings[i];
    m.mask = mask, m.what = what, m.site = site, m.arrived = 0, m.to_leave = mask;
  }
  Meeting_& m = warp.meetings[i];
  m.value[self] = value;
  m.arrived |= bit;
  if (m.arrived == mask) {
    warp.open &= ~(1u << i);
    for (unsigned lanes = mask; lanes; lanes &= lanes - 1) make_ready(first + __builtin_ctz(lanes));
  } else {
    thread.waits = what, thread.site = site, thread.mask = mask;
  }
  wait();
  return m;
}

void leave(Meeting& meeting) {
  Meeting_& m = static_cast<Meeting_&>(meeting);
  Warp& warp = warps[current / 32];
  m.to_leave &= ~(1u << (current % 32));
  if (m.to_leave == 0) warp.used &= ~(1u << (&m - warp.meetings));
}

void preempt() {
  busy.insert((uint64_t{blockIdx.z} * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x);
  if (++num_preemptions == kMaxPreemptions)
    fail_in_fiber("waits by atomic operations for what does not come");
  draw_preemption();
  make_ready(current);
  wait();
}

}  // namespace mach_shim

cudaError_t cudaGetLastError() { return cudaSuccess; }

const char* cudaGetErrorString(cudaError_t) { return mach_shim::last_error.c_str(); }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      return *value = 4, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = static_cast<int>(mach_shim::shared_limit), cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return *value = 2048, cudaSuccess;
    case cudaDevAttrL2CacheSize:
      return *value = 50 << 20, cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      return *value = 9, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = 0, cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

// For Python, by ctypes.
#define MACH_SHIM_API extern "C" __attribute__((visibility("default")))
MACH_SHIM_API void mach_shim_set_seed(uint64_t seed) { mach_shim::seed = seed; }

// "kernel launches blocks threads switches busy" a line; the text stays valid until the next call.
MACH_SHIM_API const char* mach_shim_totals() {
  static std::string out;
  out.clear();
  for (const auto& [name, t] : mach_shim::totals)
    out += name + " " + std::to_string(t.launches) + " " + std::to_string(t.blocks) + " " +
           std::to_string(t.threads) + " " + std::to_string(t.switches) + " " + std::to_string(t.busy) + "\n";
  return out.c_str();
}

// The last launches and waits since the last call, one a line.
MACH_SHIM_API const char* mach_shim_events() {
  static std::string out;
  out.clear();
  for (const std::string& event : mach_shim::events) out += event + "\n";
  mach_shim::events.clear();
  return out.c_str();
}
