// Threads as fibers on the calling thread, of one block or of a few at the same time.
//
// A fiber runs until it waits for others, ends, or (sometimes) does an atomic operation; then one of those
// that can go on is resumed. Which one, and of which block, is drawn from a generator seeded by the seed, the
// kernel and the shape of the launch. Seed 0: in order of threads, one block after the other.
#include <sys/mman.h>

#include <cstdlib>
#include <stdexcept>

#include "shim.h"

#if MACH_SHIM_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace mach_shim {

unsigned until_preempted = 0;
Launch launch_;
Block blocks[kMaxResident];
Block* here = blocks;
unsigned current;
bool in_fiber = false;

namespace {

constexpr unsigned kMaxFibers = kMaxResident * kMaxThreads;
Fiber fibers[kMaxFibers];  // their stacks are made when first needed and kept
Fiber* idle[kMaxFibers];
unsigned num_fibers = 0, num_idle = 0;
char* stacks = nullptr;  // of all fibers
bool launch_starts;      // the current thread, which has no fiber yet
Context launch_context;

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
void switch_context(Context& save, Context& load) { mach_shim_switch(&save, load); }
#else
void switch_context(Context& save, Context& load) { swapcontext(&save, &load); }
#endif

// From one fiber to another or, where there is none, to the launch; `from` null: from the launch.
#if MACH_SHIM_ASAN
const void* launch_stack;
size_t launch_stack_size;
bool from_launch;

void arrived(void* fake_stack) {
  const void* stack;
  size_t size;
  __sanitizer_finish_switch_fiber(fake_stack, &stack, &size);
  if (from_launch) launch_stack = stack, launch_stack_size = size;
}
void switch_fiber(Fiber* from, Fiber* to) {
  void* fake_stack;
  from_launch = from == nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, to ? to->stack : launch_stack, to ? kStack : launch_stack_size);
  in_fiber = to != nullptr;
  switch_context(from ? from->context : launch_context, to ? to->context : launch_context);
  arrived(fake_stack);
}
#else
void arrived(void*) {}
void switch_fiber(Fiber* from, Fiber* to) {
  in_fiber = to != nullptr;
  switch_context(from ? from->context : launch_context, to ? to->context : launch_context);
}
#endif

// ---------------------------------------------------------------------------------------- scheduling

void set_current(unsigned t) {
  current = t;
  threadIdx = here->threads[t].index;
  blockIdx = here->index;
}

// Every live block has a thread that is ready, or there would be a report. Mostly the same one goes on.
void choose_block() {
  if (launch_.num_live < 2 || draw(4) != 0) return;
  unsigned which = draw(launch_.num_live);
  for (Block& block : blocks)
    if (block.live && which-- == 0) here = &block;
}

// The next thread of a block in which one is ready; null where it has no fiber yet.
Fiber* next_fiber() {
  choose_next();
  Thread& thread = here->current_thread();
  if (thread.fiber == nullptr && num_idle > 0) thread.fiber = idle[--num_idle];
  launch_starts = thread.fiber == nullptr;
  return thread.fiber;
}

// One thread after another runs on a fiber.
void fiber_main() {
  arrived(nullptr);
  for (;;) {
    launch_.body(launch_.data);
    expect_no_copies();
    Thread& ended = here->current_thread();
    Fiber* const self = ended.fiber;
    ended.ended = true;
    ended.fiber = nullptr;
    --here->num_alive;
    Fiber* next = nullptr;
    if (here->ready_size > 0) {
      choose_next();
      Thread& thread = here->current_thread();
      if (thread.fiber == nullptr) {
        thread.fiber = self;
        continue;
      }
      next = thread.fiber;
    }
    idle[num_idle++] = self;
    ++launch_.switches;
    switch_fiber(self, next);
  }
}

}  // namespace

void Fiber::prepare() {
  if (stack == nullptr) {
    constexpr size_t kEach = kStack + kPage;
    const size_t i = static_cast<size_t>(this - fibers);
    if (stacks == nullptr) {
      void* mapped =
          mmap(nullptr, kMaxFibers * kEach, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (mapped != MAP_FAILED) stacks = static_cast<char*>(mapped);
    }
    if (stacks == nullptr || mprotect(stacks + i * kEach + kPage, kStack, PROT_READ | PROT_WRITE) != 0)
      throw std::runtime_error("cuda shim: no memory for the stacks of fibers");
    stack = stacks + i * kEach + kPage;
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

bool is_on_stack(const void* p) {
  return static_cast<size_t>(static_cast<const char*>(p) - stacks) < kMaxFibers * (kStack + kPage);
}

void make_ready(unsigned t) {
  here->threads[t].waits = nullptr;
  here->ready[(here->ready_begin + here->ready_size++) % kMaxThreads] = t;
}

void choose_next() {
  choose_block();
  Block& b = *here;
  if (seed) std::swap(b.ready[b.ready_begin], b.ready[(b.ready_begin + draw(b.ready_size)) % kMaxThreads]);
  const unsigned t = b.ready[b.ready_begin];
  b.ready_begin = (b.ready_begin + 1) % kMaxThreads;
  --b.ready_size;
  set_current(t);
}

// The current thread waits (or is in the queue of those that are ready, too).
void wait() {
  Fiber* const self = here->current_thread().fiber;
  Fiber* const next = here->ready_size > 0 ? next_fiber() : nullptr;
  if (next == self) return;
  ++launch_.switches;
  switch_fiber(self, next);
}

void leave_fiber() { switch_fiber(here->current_thread().fiber, nullptr); }

void resume() {
  do {
    Thread& thread = here->current_thread();
    if (thread.fiber == nullptr) {
      if (num_idle == 0) {
        fibers[num_fibers].prepare();
        idle[num_idle++] = &fibers[num_fibers++];
      }
      thread.fiber = idle[--num_idle];
    }
    launch_starts = false;
    switch_fiber(nullptr, thread.fiber);
  } while (launch_starts);
}

void give_fibers_back(Block& block) {
  for (unsigned t = 0; t < launch_.num_threads; ++t) {
    Fiber*& fiber = block.threads[t].fiber;
    if (fiber == nullptr) continue;
    fiber->prepare();
    idle[num_idle++] = fiber;
    fiber = nullptr;
  }
}

void preempt() {
  launch_.busy.insert((uint64_t{blockIdx.z} * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x);
  if (++here->num_preemptions == kMaxPreemptions)
    fail_in_fiber("waits by atomic operations for what does not come");
  draw_preemption();
  make_ready(current);
  wait();
}

}  // namespace mach_shim
