// Accesses that nothing orders: of two blocks of a launch, or of two threads of a block.
//
// The kernels are compiled with -fsanitize=thread, and the calls that the compiler puts before each load and
// store come here instead of to its library. Every four bytes that a kernel touches remember who wrote and
// who read them, and at which step. Steps go up at barriers, fences and __syncwarp. x is before y, where
//   - both are of one thread, or a barrier of their block (or a __syncwarp of both lanes) is between them;
//   - they are of two blocks, and: after x its thread, or one that x is before, has a __threadfence, then an
//     atomic operation. The thread of y, or one whose barrier is before y, does an atomic operation on the
//     same word later, then a __threadfence.
// Two accesses of which neither is before the other, one of them a write, not both of them atomic: a report.
// So is an atomicExch of a word that an atomicAdd or the like is not before: it takes away a sum not yet
// complete. And so is an __ldg of what the launch has written. Atomic operations are relaxed, as CUDA's. So
// are volatile accesses and __ldcg here. Shuffles and votes order nothing, as CUDA says.
#include "shim.h"

#ifdef MACH_SHIM_RACES
#include <dlfcn.h>

#include <cstdio>
#include <memory>
#include <unordered_map>

namespace mach_shim {
namespace {

// ------------------------------------------------------------------------------- who touched what, when

// An access: step (32 bits), block (16), thread (10), bytes of the four (4), accumulates (1), atomic (1).
using Cell = uint64_t;
constexpr unsigned kBlocks = 1u << 16;  // numbers beyond start again at 0
uint32_t step_of(Cell c) { return static_cast<uint32_t>(c >> 32); }
uint32_t block_of(Cell c) { return static_cast<uint32_t>(c >> 16) & (kBlocks - 1); }
unsigned thread_of(Cell c) { return static_cast<unsigned>(c >> 6) & (kMaxThreads - 1); }
unsigned bytes_of(Cell c) { return static_cast<unsigned>(c >> 2) & 15; }
bool accumulates(Cell c) { return c >> 1 & 1; }
bool is_atomic(Cell c) { return c & 1; }

struct Word {
  Cell writes[2];  // the last, and the last of other bytes or of another block
  Cell reads[2];   // the last, and the last of another block
};

constexpr unsigned kPageBits = 12;
struct Page {
  Word words[(1 << kPageBits) / 4];
};
std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
struct {
  uintptr_t number;
  Page* page;
} recent[256];                      // pages, by the low bits of their numbers
constexpr size_t kMaxPages = 4096;  // kept from one launch to the next

Word* word_at(uintptr_t at) {
  const uintptr_t number = at >> kPageBits;
  auto& slot = recent[number % 256];
  if (slot.number != number || slot.page == nullptr) {
    std::unique_ptr<Page>& page = pages[number];
    if (page == nullptr) page.reset(new Page());
    slot = {number, page.get()};
  }
  return &slot.page->words[(at & ((1 << kPageBits) - 1)) / 4];
}

uint32_t step = 1, first_step;  // now, and when the launch began

// ------------------------------------------------------------------- what is before what, between blocks

struct Release;
using Releases = std::vector<std::shared_ptr<const Release>>;
using Steps = std::vector<uint32_t>;

// What an atomic operation publishes: accesses of its block that fences of its thread, or of others before a
// barrier, are behind; and what these knew of other blocks.
struct Release {
  uint32_t block, all;  // all accesses of the block before this step
  unsigned thread;
  uint32_t own;                          // the thread's own up to this one
  uint32_t lanes[32];                    // its warp's before these
  std::shared_ptr<const Steps> threads;  // each thread's up to this one; may be null
  Releases known;

  bool covers(Cell x) const {
    if (block_of(x) == block) {
      const unsigned t = thread_of(x);
      if (step_of(x) < all || (t == thread && step_of(x) <= own)) return true;
      if (t / 32 == thread / 32 && step_of(x) < lanes[t % 32]) return true;
      if (threads && step_of(x) <= (*threads)[t]) return true;
    }
    for (const auto& release : known)
      if (release->covers(x)) return true;
    return false;
  }
};

struct ThreadState {
  uint32_t lanes[32];                      // when the last __syncwarp with each lane of the warp was
  uint32_t fence = 0;                      // when the last one of this block's life was, 0: none
  uint32_t fenced_all = 0;                 // which accesses of the block it is behind
  uint32_t fenced_lanes[32];               // and of the warp
  Releases seen, known;                    // by atomic operations, not yet and already followed by a fence
  std::shared_ptr<const Release> release;  // of its atomic operations until something changes
};

struct BlockState {
  uint32_t barrier;      // when the last one was
  bool changes = false;  // a thread has a fence or has seen a release since
  uint32_t all;          // accesses that fences before the barrier are behind: all before this step,
  std::shared_ptr<const Steps> threads;  // and those of each thread up to this one
  std::vector<std::pair<std::shared_ptr<const Release>, uint32_t>> seen;  // at the barrier of this step
  Releases known;
  ThreadState states[kMaxThreads];
};
BlockState states[kMaxResident];
std::unordered_map<const void*, Releases> published;  // by words that had atomic operations

BlockState& block_state() { return states[here->slot()]; }
ThreadState& thread_state() { return block_state().states[current]; }

void add(Releases& to, const std::shared_ptr<const Release>& release) {
  for (const auto& there : to)
    if (there == release) return;
  to.push_back(release);
}

bool knows(Cell x) {
  const BlockState& b = block_state();
  const ThreadState& t = thread_state();
  for (const Releases* known : {&t.known, &b.known})
    for (const auto& release : *known)
      if (release->covers(x)) return true;
  for (const auto& [release, since] : b.seen)
    if (t.fence >= since && release->covers(x)) return true;
  return false;
}

bool is_before(Cell x) {
  if (block_of(x) != here->number % kBlocks) return knows(x);
  const unsigned t = thread_of(x);
  return t == current || step_of(x) < block_state().barrier ||
         (t / 32 == current / 32 && step_of(x) < thread_state().lanes[t % 32]);
}

void publish(const void* at) {
  BlockState& b = block_state();
  ThreadState& t = thread_state();
  const auto there = published.find(at);
  if (there != published.end())
    for (const auto& release : there->second)
      if (release->block != here->number % kBlocks) add(t.seen, release), b.changes = true;
  if (t.fence == 0 && b.all == 0 && b.threads == nullptr) return;
  if (t.release == nullptr) {
    auto made = std::make_shared<Release>();
    made->block = here->number % kBlocks;
    made->all = std::max(b.all, t.fenced_all);
    made->thread = current;
    made->own = t.fence;
    std::copy(t.fenced_lanes, t.fenced_lanes + 32, made->lanes);
    made->threads = b.threads;
    made->known = t.known;
    for (const auto& release : b.known) add(made->known, release);
    for (const auto& [release, since] : b.seen)
      if (t.fence >= since) add(made->known, release);
    t.release = made;
  }
  add(published[at], t.release);
}

// --------------------------------------------------------------------------------------------- reports

// file.cu:12 < file.cuh:34: the line of the access, and what it is inlined into.
std::string source_of(const void* place) {
  Dl_info info;
  if (!dladdr(place, &info) || info.dli_fname == nullptr) return "?";
  char command[600], line[400];
  const auto offset = reinterpret_cast<uintptr_t>(place) - 1 - reinterpret_cast<uintptr_t>(info.dli_fbase);
  std::snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%zx 2>/dev/null", info.dli_fname,
                static_cast<size_t>(offset));
  std::string out;
  if (FILE* lines = popen(command, "r")) {
    while (std::fgets(line, sizeof line, lines)) {
      const std::string at(line, std::strcspn(line, " \n"));
      if (at.find("cuda_runtime.h") == std::string::npos)
        out += (out.empty() ? "" : " < ") + at.substr(at.rfind('/') + 1);
    }
    pclose(lines);
  }
  return out.empty() ? "?" : out;
}

bool is_shared(uintptr_t at) { return at - reinterpret_cast<uintptr_t>(here->shared) < launch_.shared_size; }

const char* done_by(Access a) {
  if (a == Access::write) return "writes";
  return a == Access::read || a == Access::relaxed_read ? "reads" : "changes atomically";
}

[[noreturn]] void report(uintptr_t at, size_t size, Access access, Cell x, bool wrote, const void* place) {
  const uintptr_t shared = reinterpret_cast<uintptr_t>(here->shared);
  const bool in_shared = is_shared(at);
  const unsigned t = thread_of(x), number = block_of(x);
  char word[64];
  std::snprintf(word, sizeof word, in_shared ? "byte %zu of its shared memory" : "memory at 0x%zx",
                static_cast<size_t>(in_shared ? at - shared : at));
  const uint3 block{number % gridDim.x, number / gridDim.x % gridDim.y, number / gridDim.x / gridDim.y};
  const bool same = number == here->number % kBlocks;
  fail_in_fiber(std::string(done_by(access)) + " " + std::to_string(size) + " bytes of " + word + ", " +
                source_of(place) + ", which thread " + text(here->threads[t].index) +
                (same ? " of the block" : " of block " + text(block)) + (wrote ? " wrote" : " read") +
                (is_atomic(x) ? " atomically" : "") + ", and nothing orders the two: a race between " +
                (same ? "threads" : "blocks"));
}

// ------------------------------------------------------------------------------------------- one access

bool races(Cell x, Cell self, bool in_shared, bool takes = false) {
  if (in_shared && block_of(x) != block_of(self)) return false;  // of a block whose place it was before
  return step_of(x) >= first_step && (bytes_of(x) & bytes_of(self)) &&
         !(is_atomic(x) && is_atomic(self) && !(takes && accumulates(x))) && !is_before(x);
}

bool is_shim(const void* at) {  // what collectives hand over
  return at >= static_cast<const void*>(blocks) && at < static_cast<const void*>(blocks + kMaxResident);
}

}  // namespace

void races_access(const void* p, size_t size, Access access, const void* place) {
  if (!in_fiber || is_on_stack(p) || is_shim(p)) return;
  const bool reads = access == Access::read || access == Access::relaxed_read;
  const bool atomic = access != Access::write && access != Access::read, takes = access == Access::take;
  const Cell who = Cell{step} << 32 | Cell{here->number % kBlocks} << 16 | Cell{current} << 6 |
                   Cell{access == Access::accumulate} << 1 | Cell{atomic};
  const uintptr_t begin = reinterpret_cast<uintptr_t>(p), end = begin + size;
  const bool in_shared = is_shared(begin);
  for (uintptr_t at = begin & ~uintptr_t{3}; at < end; at += 4) {
    const unsigned first = at < begin ? static_cast<unsigned>(begin - at) : 0;
    const unsigned last = end - at < 4 ? static_cast<unsigned>(end - at) : 4;
    const Cell self = who | Cell{((1u << last) - 1) & ~((1u << first) - 1)} << 2;
    Word& word = *word_at(at);
    if ((reads ? word.reads : word.writes)[0] == self) continue;
    // An atomic operation of another block that one of this block came after is past: same word, same order.
    if (races(word.writes[0], self, in_shared, takes))
      report(begin, size, access, word.writes[0], true, place);
    if ((takes || !is_atomic(word.writes[1])) && races(word.writes[1], self, in_shared, takes))
      report(begin, size, access, word.writes[1], true, place);
    if (reads) {
      if (block_of(word.reads[0]) != block_of(self) || step_of(word.reads[0]) < first_step)
        word.reads[1] = word.reads[0];
      word.reads[0] = self;
    } else {
      for (const Cell x : word.reads)
        if (races(x, self, in_shared)) report(begin, size, access, x, false, place);
      if (!(bytes_of(word.writes[0]) & bytes_of(self)) || block_of(word.writes[0]) != block_of(self))
        word.writes[1] = word.writes[0];
      word.writes[0] = self;
    }
  }
  if (atomic && access != Access::relaxed_read) publish(p);
}

void note_atomic(const void* at, size_t size, Atomic what, const void* place) {
  races_access(at, size,
               what == Atomic::accumulates ? Access::accumulate
               : what == Atomic::takes     ? Access::take
                                           : Access::atomic,
               place);
}
void note_relaxed_read(const void* at, size_t size, const void* place) {
  races_access(at, size, Access::relaxed_read, place);
}
// Not even what the thread itself has written.
void note_constant_read(const void* p, size_t size, const void* place) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(p), end = begin + size;
  for (uintptr_t at = begin & ~uintptr_t{3}; at < end; at += 4)
    for (const Cell x : word_at(at)->writes)
      if (step_of(x) >= first_step)
        fail_in_fiber("reads by __ldg what the launch has written, " + source_of(place));
  races_access(p, size, Access::read, place);
}

// ---------------------------------------------------------------------------------- what orders accesses

void races_begin_launch() {
  published.clear();
  if (pages.size() > kMaxPages || step > 0xf0000000u) {  // all that is in them is over
    pages.clear();
    for (auto& slot : recent) slot = {};
    if (step > 0xf0000000u) step = 1;
  }
  first_step = ++step;
}

void races_begin_block() {
  BlockState& b = block_state();
  b.barrier = b.all = 0;
  b.changes = false;
  b.threads = nullptr;
  b.seen.clear();
  b.known.clear();
  for (unsigned i = 0; i < launch_.num_threads; ++i) {
    ThreadState& t = b.states[i];
    std::fill(t.lanes, t.lanes + 32, 0);
    std::fill(t.fenced_lanes, t.fenced_lanes + 32, 0);
    t.fence = t.fenced_all = 0;
    t.seen.clear();
    t.known.clear();
    t.release = nullptr;
  }
}

void races_fence() {
  BlockState& b = block_state();
  ThreadState& t = thread_state();
  t.fence = step++;
  t.fenced_all = b.barrier;
  std::copy(t.lanes, t.lanes + 32, t.fenced_lanes);
  for (const auto& release : t.seen) add(t.known, release);
  t.seen.clear();
  t.release = nullptr;
  b.changes = true;
}

void races_barrier() {
  BlockState& b = block_state();
  b.barrier = ++step;
  if (!b.changes) return;
  b.changes = false;
  auto threads = std::make_shared<Steps>(kMaxThreads, 0);
  if (b.threads) *threads = *b.threads;
  for (unsigned i = 0; i < launch_.num_threads; ++i) {
    ThreadState& t = b.states[i];
    b.all = std::max(b.all, t.fenced_all);
    (*threads)[i] = std::max((*threads)[i], t.fence);
    for (unsigned l = 0; l < 32; ++l)  // before, not up to
      if (t.fenced_lanes[l] > 0)
        (*threads)[i / 32 * 32 + l] = std::max((*threads)[i / 32 * 32 + l], t.fenced_lanes[l] - 1);
    for (const auto& release : t.known) add(b.known, release);
    t.known.clear();
    for (const auto& release : t.seen) b.seen.emplace_back(release, step);
    t.seen.clear();
    t.release = nullptr;
  }
  for (size_t e = 0; e < b.seen.size();) {  // those that some thread's fence came after
    bool fenced = false;
    for (unsigned i = 0; i < launch_.num_threads; ++i) fenced |= b.states[i].fence >= b.seen[e].second;
    if (fenced) {
      add(b.known, b.seen[e].first);
      b.seen.erase(b.seen.begin() + static_cast<std::ptrdiff_t>(e));
    } else {
      ++e;
    }
  }
  b.threads = threads;
}

void races_sync_warp(unsigned first, unsigned mask) {
  ThreadState* lanes = block_state().states + first;
  ++step;
  uint32_t joined[32] = {};
  Releases seen, known;
  for (unsigned left = mask; left; left &= left - 1) {
    const ThreadState& t = lanes[__builtin_ctz(left)];
    for (unsigned l = 0; l < 32; ++l) joined[l] = std::max(joined[l], t.lanes[l]);
    for (const auto& release : t.seen) add(seen, release);
    for (const auto& release : t.known) add(known, release);
  }
  for (unsigned l = 0; l < 32; ++l)
    if (mask >> l & 1) joined[l] = step;
  for (unsigned left = mask; left; left &= left - 1) {
    ThreadState& t = lanes[__builtin_ctz(left)];
    std::copy(joined, joined + 32, t.lanes);
    t.seen = seen;
    t.known = known;
    t.release = nullptr;
  }
}

}  // namespace mach_shim

// ------------------------------------------------------------------------- what the compiler calls

#define MACH_SHIM_HOOK extern "C" __attribute__((visibility("hidden"))) void
#define MACH_SHIM_ACCESS(name, size, access)                                                   \
  MACH_SHIM_HOOK __tsan_##name(void* at) {                                                     \
    mach_shim::races_access(at, size, mach_shim::Access::access, __builtin_return_address(0)); \
  }
#define MACH_SHIM_ACCESSES(size)                            \
  MACH_SHIM_ACCESS(read##size, size, read)                  \
  MACH_SHIM_ACCESS(write##size, size, write)                \
  MACH_SHIM_ACCESS(unaligned_read##size, size, read)        \
  MACH_SHIM_ACCESS(unaligned_write##size, size, write)      \
  MACH_SHIM_ACCESS(volatile_read##size, size, relaxed_read) \
  MACH_SHIM_ACCESS(volatile_write##size, size, atomic)
MACH_SHIM_ACCESSES(1)
MACH_SHIM_ACCESSES(2)
MACH_SHIM_ACCESSES(4)
MACH_SHIM_ACCESSES(8)
MACH_SHIM_ACCESSES(16)
MACH_SHIM_HOOK __tsan_read_range(void* at, size_t size) {
  mach_shim::races_access(at, size, mach_shim::Access::read, __builtin_return_address(0));
}
MACH_SHIM_HOOK __tsan_write_range(void* at, size_t size) {
  mach_shim::races_access(at, size, mach_shim::Access::write, __builtin_return_address(0));
}
MACH_SHIM_HOOK __tsan_vptr_update(void**, void*) {}
MACH_SHIM_HOOK __tsan_vptr_read(void**) {}
MACH_SHIM_HOOK __tsan_init() {}
MACH_SHIM_HOOK __tsan_func_entry(void*) {}
MACH_SHIM_HOOK __tsan_func_exit() {}
#else
namespace mach_shim {
void races_begin_launch() {}
void races_begin_block() {}
void races_barrier() {}
void races_sync_warp(unsigned, unsigned) {}
void races_access(const void*, size_t, Access, const void*) {}
}  // namespace mach_shim
#endif
