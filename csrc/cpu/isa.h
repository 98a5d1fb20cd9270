// Run-time choice of the instruction set.
//
// Every kernel is a template on an ISA tag, declared once in its header. Its .cpp is compiled once per
// tag (CMakeLists.txt: -DMACH_ISA=Avx2 -mavx2 ...) and instantiates the kernel for that tag alone, so one
// binary holds all variants and the machine it runs on picks. float64 exists for the Scalar tag only.
//
// Invariants of a kernel file:
//   * plain loops on pointers; no allocation and no std:: templates (an inline std:: function emitted from
//     an AVX-512 object could be linked into code that runs on older CPUs);
//   * sums of floats have one fixed order, written out in the loop, the same for every tag: no fast-math,
//     no contraction. So all variants return the same bits.
#pragma once

#include <type_traits>
#include <utility>

namespace mach {

struct Scalar {};
struct Avx2 {};
struct Avx512 {};

enum class Isa : int { scalar = 0, avx2 = 1, avx512 = 2 };

// Best instruction set of this CPU, or the one that the environment variable MACH_CPU_ISA names
// (scalar, avx2, avx512). Read once. Throws std::runtime_error for an unknown name or one this CPU lacks.
Isa isa();

// Whether AVX-512 is in use and this CPU also multiplies bytes (VNNI).
bool has_vnni();

// Calls f with the tag to use for element type T.
template <class T, class F>
void with_isa(F&& f) {
  if constexpr (std::is_same_v<T, double>) {
    f(Scalar{});
  } else {
    switch (isa()) {
#if defined(__x86_64__)
      case Isa::avx512:
        return f(Avx512{});
      case Isa::avx2:
        return f(Avx2{});
#endif
      default:
        return f(Scalar{});
    }
  }
}

}  // namespace mach

// In a kernel file: instantiate for float (MACH_ISA) and, in the scalar object, for double as well.
#define MACH_INSTANTIATE_FLOATING(KERNEL) \
  KERNEL(mach::MACH_ISA, float)           \
  MACH_IF_SCALAR(KERNEL(mach::Scalar, double))
#ifdef MACH_ISA_IS_Scalar
#define MACH_IF_SCALAR(...) __VA_ARGS__
#else
#define MACH_IF_SCALAR(...)
#endif
