// Barriers and collectives. Held to more than the hardware asks, so that what passes is portable: every
// thread of the block reaches the same __syncthreads; every lane that a mask names exists and comes to the
// same collective with the same mask.
#include <cstdio>

#include "shim.h"

namespace mach_shim {

int lane() { return static_cast<int>(current % 32); }

int barrier(const char* what, bool predicate, Count count, Site site) {
  Barrier& b = here->barrier;
  if (b.arrived == 0) b.what = what, b.site = site;
  Thread& self = here->current_thread();
  if (b.arrived > 0 && (b.what != what || b.site.file != site.file || b.site.line != site.line)) {
    self.waits = what, self.site = site, self.mask = 0;
    wait();  // for good: the others wait at another barrier
  }
  b.total += predicate;
  ++b.arrived;
  if (b.arrived == launch_.num_threads) {
    b.result = count == Count::total ? b.total
               : count == Count::any ? b.total > 0
                                     : b.total == int(launch_.num_threads);
    b.arrived = 0;
    b.total = 0;
    if (kRaces) races_barrier();
    for (unsigned t = 0; t < launch_.num_threads; ++t) make_ready(t);
  } else {
    self.waits = what, self.site = site, self.mask = 0;
  }
  wait();
  return b.result;
}

Meeting& meet(const char* what, unsigned mask, uint64_t value, Site site) {
  const unsigned self = current % 32, bit = 1u << self, first = current - self;
  Warp& warp = here->warps[current / 32];
  Thread& thread = here->current_thread();
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
    if (kRaces && what[2] == 's' && what[3] == 'y') races_sync_warp(first, mask);
    for (unsigned lanes = mask; lanes; lanes &= lanes - 1) make_ready(first + __builtin_ctz(lanes));
  } else {
    thread.waits = what, thread.site = site, thread.mask = mask;
  }
  wait();
  return m;
}

void expect_row(const void* row, Site site) {
  const char* const at = static_cast<const char*>(row);
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
    fail_in_fiber("calls ldmatrix with a row that is not aligned to 16 bytes, " + where(site));
  if (at < here->shared || at + 16 > here->shared + launch_.shared_size)
    fail_in_fiber("calls ldmatrix with a row that is not in its shared memory, " + where(site));
}

void leave(Meeting& meeting) {
  Meeting_& m = static_cast<Meeting_&>(meeting);
  Warp& warp = here->warps[current / 32];
  m.to_leave &= ~(1u << (current % 32));
  if (m.to_leave == 0) warp.used &= ~(1u << (&m - warp.meetings));
}

}  // namespace mach_shim
