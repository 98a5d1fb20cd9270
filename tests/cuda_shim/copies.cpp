// Asynchronous copies to shared memory, as pessimistic as the hardware may be.
//
// The destination is poison from the moment of the issue, and written at the wait: a read before it shows.
// The source is read at the issue, at the commit or at the wait, which is drawn for each copy.
// A destination that is not poison at the wait was written in between, by a store or by another copy.
#include "shim.h"

namespace mach_shim {
namespace {

void read(Copy& copy) {
  std::memset(copy.bytes, 0, sizeof copy.bytes);
  if (copy.zeros < copy.size) std::memcpy(copy.bytes, copy.from, copy.size - copy.zeros);
  copy.read = Copy::Read::done;
}

std::string describe(const Copy& copy) {
  return "a copy of " + std::to_string(copy.size) + " bytes to byte " +
         std::to_string(copy.to - here->shared) + " of its " + std::to_string(launch_.shared_size) +
         " bytes of shared memory, " + where(copy.site);
}

bool is_aligned(const void* p, size_t size) { return reinterpret_cast<uintptr_t>(p) % size == 0; }

}  // namespace

void start_copy(void* to, const void* from, size_t size, size_t zeros, Site site) {
  Copies& copies = here->current_thread().copies;
  Copy copy{static_cast<char*>(to),
            static_cast<const char*>(from),
            static_cast<unsigned>(size),
            static_cast<unsigned>(zeros),
            copies.committed,
            Copy::Read::at_wait,
            site,
            {}};
  if ((size != 4 && size != 8 && size != 16) || zeros > size)
    fail_in_fiber("starts " + describe(copy) + ": sizes are 4, 8 and 16 bytes, zeros up to as many");
  char* const shared = here->shared;
  const size_t shared_size = launch_.shared_size;
  if (copy.to < shared || copy.to + size > shared + shared_size)
    fail_in_fiber("starts " + describe(copy) + ": not a place in it");
  if (copy.from >= shared && copy.from < shared + shared_size)
    fail_in_fiber("starts " + describe(copy) + ": the source is not global memory");
  if (!is_aligned(to, size) || !is_aligned(from, size))
    fail_in_fiber("starts " + describe(copy) + ": the " + (is_aligned(to, size) ? "source" : "destination") +
                  " is not aligned to its size");
  constexpr Copy::Read moments[] = {Copy::Read::at_wait, Copy::Read::at_commit, Copy::Read::now};
  copy.read = moments[draw(3)];
  if (copy.read == Copy::Read::now) read(copy);
  if (kRaces) {
    races_access(from, size - zeros, Access::read, __builtin_return_address(0));
    races_access(to, size, Access::write, __builtin_return_address(0));
  }
  fill(copy.to, copy.to + size);
  copies.open.push_back(copy);
}

void commit_copies() {
  Copies& copies = here->current_thread().copies;
  for (size_t i = copies.open.size(); i-- > 0 && copies.open[i].group == copies.committed;)
    if (copies.open[i].read == Copy::Read::at_commit) read(copies.open[i]);
  ++copies.committed;
}

void wait_for_copies(size_t groups, Site site) {
  Copies& copies = here->current_thread().copies;
  size_t done = 0;
  for (; done < copies.open.size(); ++done) {
    Copy& copy = copies.open[done];
    if (copy.group + groups >= copies.committed) break;  // among the newest groups, or in none yet
    if (copy.read != Copy::Read::done) read(copy);
    if (!is_filled(copy.to, copy.to + copy.size))
      fail_in_fiber("waits, " + where(site) + ", for " + describe(copy) +
                    ": another copy or a store wrote there meanwhile");
    if (kRaces) races_access(copy.to, copy.size, Access::write, __builtin_return_address(0));
    std::memcpy(copy.to, copy.bytes, copy.size);
  }
  copies.open.erase(copies.open.begin(), copies.open.begin() + static_cast<std::ptrdiff_t>(done));
}

void expect_no_copies() {
  const Copies& copies = here->current_thread().copies;
  if (copies.open.empty()) return;
  fail_in_fiber("ends and has not waited for " + describe(copies.open.front()) +
                (copies.open.size() > 1 ? " and " + std::to_string(copies.open.size() - 1) + " more" : ""));
}

}  // namespace mach_shim
