// What a fault says. It ends the launch with std::runtime_error; ASan has its own reports, and ends the
// process.
#include <signal.h>

#include <cstdio>
#include <cstdlib>

#include "shim.h"

#if MACH_SHIM_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

namespace mach_shim {

std::string text(const uint3& v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}
std::string text(const dim3& v) { return text(uint3{v.x, v.y, v.z}); }

std::string where(const Site& site) {
  const std::string file = site.file;
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line);
}

std::string head() {
  return "cuda shim: kernel " + std::string(launch_.kernel) + ", grid " + text(gridDim) + " x block " +
         text(blockDim) + ", seed " + std::to_string(seed) + ", block " + text(here->index) + ": ";
}

void fail_in_fiber(const std::string& what) {
  launch_.fault = head() + "thread " + text(here->current_thread().index) + " " + what;
  leave_fiber();
  std::abort();
}

std::string stuck() {
  std::string out = head() + "not all threads can go on";
  const auto doing = [](unsigned t) {
    char buffer[64];
    const Thread& thread = here->threads[t];
    if (thread.ended) return std::string("ended");
    std::string wait = std::string("in ") + thread.waits;
    if (thread.mask) {
      std::snprintf(buffer, sizeof buffer, ", mask 0x%08x", thread.mask);
      wait += buffer;
    }
    return wait + ", " + where(thread.site);
  };
  for (unsigned begin = 0, end; begin < launch_.num_threads; begin = end) {
    const std::string what = doing(begin);
    for (end = begin + 1; end < launch_.num_threads && doing(end) == what;) ++end;
    out += "\n  thread" +
           (end - begin == 1 ? " " + std::to_string(begin)
                             : "s " + std::to_string(begin) + "-" + std::to_string(end - 1)) +
           ": " + what;
  }
  return out;
}

#if MACH_SHIM_ASAN
Signals::Signals() {  // what is added to ASan's report is which thread it was
  __sanitizer_set_death_callback([] {
    if (in_fiber)
      std::fprintf(stderr, "%sthread %s\n", head().c_str(), text(here->current_thread().index).c_str());
  });
}
Signals::~Signals() {}
#else
namespace {

struct sigaction before[2];
stack_t stack_before;

void handle(int signal, siginfo_t* info, void*) {
  if (!in_fiber) {  // not a kernel's: as it would have been
    sigaction(signal, &before[signal == SIGBUS], nullptr);
    return;
  }
  const char* at = static_cast<const char*>(info->si_addr);
  const Fiber& f = *here->current_thread().fiber;
  char buffer[128];
  if (at >= here->shared_end && at < here->shared_end + kGuard)
    std::snprintf(buffer, sizeof buffer, "touches byte %zu of its %zu bytes of shared memory",
                  static_cast<size_t>(at - here->shared), launch_.shared_size);
  else if (at < f.stack && at >= f.stack - kPage)
    std::snprintf(buffer, sizeof buffer, "needs a stack of more than %zu bytes", kStack);
  else
    std::snprintf(buffer, sizeof buffer, "touches memory that is not there, at %p", info->si_addr);
  fail_in_fiber(buffer);
}

}  // namespace

Signals::Signals() {
  static char stack[64 << 10];
  stack_t mine{};
  mine.ss_sp = stack;
  mine.ss_size = sizeof stack;
  sigaltstack(&mine, &stack_before);
  struct sigaction action{};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // the handler is left without a return
  sigaction(SIGSEGV, &action, &before[0]);
  sigaction(SIGBUS, &action, &before[1]);
}
Signals::~Signals() {
  sigaction(SIGSEGV, &before[0], nullptr);
  sigaction(SIGBUS, &before[1], nullptr);
  sigaltstack(&stack_before, nullptr);
}
#endif

}  // namespace mach_shim
