#include "isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace mach {
namespace {

Isa best_isa() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2")) return Isa::avx2;
#endif
  return Isa::scalar;
}

Isa choose_isa() {
  const Isa best = best_isa();
  const char* name = std::getenv("MACH_CPU_ISA");
  if (name == nullptr || *name == '\0') return best;
  const char* const names[] = {"scalar", "avx2", "avx512"};
  for (int level = 0; level < 3; ++level)
    if (std::string(name) == names[level]) {
      if (level > static_cast<int>(best))
        throw std::runtime_error("MACH_CPU_ISA=" + std::string(name) + ": this CPU only has " +
                                 names[static_cast<int>(best)]);
      return static_cast<Isa>(level);
    }
  throw std::runtime_error("MACH_CPU_ISA=" + std::string(name) + ": must be scalar, avx2 or avx512");
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose_isa();
  return chosen;
}

bool has_vnni() {
#if defined(__x86_64__)
  static const bool found = isa() == Isa::avx512 && __builtin_cpu_supports("avx512vnni");
  return found;
#else
  return false;
#endif
}

}  // namespace mach
