// Stands in for CUDA's header of this name where g++ compiles the .cu files to run without a GPU: the part of
// CUDA C++ that csrc/cuda uses, and the launch of a kernel on fibers. What is not here, kernels don't use; no
// `__shared__` (device.cuh: dynamic_shared), no atomics on floating point, no __activemask.
// The rules that a launch is held to are in fibers.cpp.
#pragma once

#include <math.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__ const
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

#define MACH_SHIM_VECTOR(scalar, name, align2, align4)                              \
  struct name##1 { scalar x; };                                                     \
  struct __align__(align2) name##2 { scalar x, y; };                                \
  struct name##3 { scalar x, y, z; };                                               \
  struct __align__(align4) name##4 { scalar x, y, z, w; };                          \
  inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; }              \
  inline name##3 make_##name##3(scalar x, scalar y, scalar z) { return {x, y, z}; } \
  inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
MACH_SHIM_VECTOR(signed char, char, 2, 4)
MACH_SHIM_VECTOR(unsigned char, uchar, 2, 4)
MACH_SHIM_VECTOR(short, short, 4, 8)
MACH_SHIM_VECTOR(unsigned short, ushort, 4, 8)
MACH_SHIM_VECTOR(int, int, 8, 16)
MACH_SHIM_VECTOR(unsigned, uint, 8, 16)
MACH_SHIM_VECTOR(long long, longlong, 16, 16)
MACH_SHIM_VECTOR(unsigned long long, ulonglong, 16, 16)
MACH_SHIM_VECTOR(float, float, 8, 16)
MACH_SHIM_VECTOR(double, double, 16, 16)
#undef MACH_SHIM_VECTOR

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Of the fiber that runs.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// ------------------------------------------------------------------------------------------ host side

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
};
using cudaError = cudaError_t;
using cudaStream_t = struct CUstream_st*;
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxThreadsPerMultiProcessor,
  cudaDevAttrL2CacheSize,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
};
namespace mach_shim {
void note(const char* event);  // what the host does, in order: launches and waits
// The stream that work has to go to: null, until it is changed, then another one after each change.
cudaStream_t current_stream();
void change_stream();
void use_stream(cudaStream_t);  // throws where it is another
// Memory that nothing was written to yet, as far as the reader can tell.
void poison(void* begin, size_t bytes);
}  // namespace mach_shim
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int device);
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  mach_shim::use_stream(stream);
  return mach_shim::note("cudaStreamSynchronize"), cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream) {
  mach_shim::use_stream(stream);
  return std::memset(p, value, bytes), cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t stream) {
  mach_shim::use_stream(stream);
  return std::memcpy(to, from, bytes), cudaSuccess;
}

namespace mach_shim {

cudaError_t run(const char* name, dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*),
                void* data);

template <class... P, class... A>
cudaError_t launch(const char* name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                   A&&... args) {
  const std::tuple<std::decay_t<P>...> parameters(std::forward<A>(args)...);
  auto body = [&] { std::apply(kernel, parameters); };
  return run(
      name, grid, block, shared_bytes, [](void* data) { (*static_cast<decltype(body)*>(data))(); }, &body);
}

void* dynamic_shared();

// ---------------------------------------------------------------------------------------- collectives

// Where in the source a fiber waits.
struct Site {
  const char* file;
  int line;
};

enum class Count { total, any, all };
int barrier(const char* what, bool predicate, Count, Site);

// All lanes of the mask meet; then each sees what the others brought.
struct Meeting {
  uint64_t value[32];
  unsigned mask;
};
// Lane of the caller; the meeting is to be left after the values are read.
Meeting& meet(const char* what, unsigned mask, uint64_t value, Site);
void leave(Meeting&);
int lane();

// Of the thread that runs; what cuda_pipeline_primitives.h is made of.
void start_copy(void* to, const void* from, size_t size, size_t zeros, Site);
void commit_copies();
void wait_for_copies(size_t groups, Site);  // all of its groups but the newest so many

// A row of a matrix that ldmatrix reads: 16 bytes, aligned, in shared memory.
void expect_row(const void* row, Site);

constexpr uint32_t kPoison = 0x7ff8dead;  // a NaN as float, bfloat16 and double, an index out of any range

template <class T>
uint64_t bits(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "");
  uint64_t out = 0;
  std::memcpy(&out, &value, sizeof(T));
  return out;
}
template <class T>
T from_bits(uint64_t bits) {
  T out;
  std::memcpy(&out, &bits, sizeof(T));
  return out;
}

// source(lane, end of the segment): the lane to read; one that is not in the mask gives poison.
template <class T, class F>
T shuffle(const char* what, unsigned mask, T value, int width, Site site, const F& source) {
  Meeting& m = meet(what, mask, bits(value), site);
  const int self = lane(), begin = self & ~(width - 1);
  const int from = source(self, begin, begin + width);
  const uint64_t got = m.mask >> from & 1 ? m.value[from] : uint64_t{kPoison} << 32 | kPoison;
  leave(m);
  return from_bits<T>(got);
}

// What an atomic operation does to a word: nothing, adds to what others did, takes it away, or another thing.
enum class Atomic { reads, accumulates, takes, other };

// In the build that looks for races the compiler shows them all other accesses; these are said to them here.
#ifdef MACH_SHIM_RACES
#define MACH_SHIM_UNSEEN __attribute__((no_sanitize("thread")))
void note_atomic(const void* at, size_t size, Atomic, const void* place);
void note_relaxed_read(const void* at, size_t size, const void* place);
void note_constant_read(const void* at, size_t size, const void* place);
void races_fence();
#else
#define MACH_SHIM_UNSEEN
inline void note_atomic(const void*, size_t, Atomic, const void*) {}
inline void note_relaxed_read(const void*, size_t, const void*) {}
inline void note_constant_read(const void*, size_t, const void*) {}
inline void races_fence() {}
#endif

// Before an atomic operation another fiber may run.
extern unsigned until_preempted;
void preempt();
MACH_SHIM_UNSEEN inline void atomic_point() {
  if (--until_preempted == 0) preempt();
}

template <class T, class F>
MACH_SHIM_UNSEEN T atomic(T* at, Atomic what, const F& f) {
  static_assert(std::is_same<T, int>::value || std::is_same<T, unsigned>::value ||
                    std::is_same<T, unsigned long long>::value,
                "atomics are for int, unsigned and unsigned long long");
  atomic_point();
  note_atomic(at, sizeof(T), what, __builtin_return_address(0));
  const T before = *at;
  *at = f(before);
  return before;
}

template <class T>
constexpr Atomic accumulates(T v) {  // 0 is how a kernel reads a word that others change
  return v == 0 ? Atomic::reads : Atomic::accumulates;
}

template <class T>
struct Same {
  using type = T;
};
template <class T>
using same = typename Same<T>::type;

}  // namespace mach_shim

#define MACH_SHIM_SITE mach_shim::Site site = {__builtin_FILE(), __builtin_LINE()}

inline void __syncthreads(MACH_SHIM_SITE) {
  mach_shim::barrier("__syncthreads", false, mach_shim::Count::total, site);
}
inline int __syncthreads_count(int predicate, MACH_SHIM_SITE) {
  return mach_shim::barrier("__syncthreads_count", predicate != 0, mach_shim::Count::total, site);
}
inline int __syncthreads_or(int predicate, MACH_SHIM_SITE) {
  return mach_shim::barrier("__syncthreads_or", predicate != 0, mach_shim::Count::any, site);
}
inline int __syncthreads_and(int predicate, MACH_SHIM_SITE) {
  return mach_shim::barrier("__syncthreads_and", predicate != 0, mach_shim::Count::all, site);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, MACH_SHIM_SITE) {
  mach_shim::leave(mach_shim::meet("__syncwarp", mask, 0, site));
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, MACH_SHIM_SITE) {
  return mach_shim::shuffle("__shfl_sync", mask, value, width, site,
                            [=](int, int begin, int end) { return begin + (source & (end - begin - 1)); });
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, MACH_SHIM_SITE) {
  return mach_shim::shuffle("__shfl_up_sync", mask, value, width, site, [=](int lane, int begin, int) {
    return lane - static_cast<int>(delta) < begin ? lane : lane - static_cast<int>(delta);
  });
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, MACH_SHIM_SITE) {
  return mach_shim::shuffle("__shfl_down_sync", mask, value, width, site, [=](int lane, int, int end) {
    return lane + static_cast<int>(delta) >= end ? lane : lane + static_cast<int>(delta);
  });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32, MACH_SHIM_SITE) {
  return mach_shim::shuffle("__shfl_xor_sync", mask, value, width, site, [=](int lane, int, int end) {
    return (lane ^ with) >= end ? lane : lane ^ with;
  });
}

inline unsigned __ballot_sync(unsigned mask, int predicate, MACH_SHIM_SITE) {
  mach_shim::Meeting& m = mach_shim::meet("__ballot_sync", mask, predicate != 0, site);
  unsigned out = 0;
  for (int i = 0; i < 32; ++i) out |= (mask >> i & 1) && m.value[i] ? 1u << i : 0u;
  mach_shim::leave(m);
  return out;
}
inline int __any_sync(unsigned mask, int predicate, MACH_SHIM_SITE) {
  return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, MACH_SHIM_SITE) {
  return __ballot_sync(mask, predicate, site) == mask;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, MACH_SHIM_SITE) {
  mach_shim::Meeting& m = mach_shim::meet("__match_any_sync", mask, mach_shim::bits(value), site);
  unsigned out = 0;
  for (int i = 0; i < 32; ++i) out |= (mask >> i & 1) && m.value[i] == mach_shim::bits(value) ? 1u << i : 0u;
  mach_shim::leave(m);
  return out;
}

#undef MACH_SHIM_SITE

// Memory is one and in order here; only the search for races asks for fences.
inline void __threadfence() { mach_shim::races_fence(); }
inline void __threadfence_block() {}

// -------------------------------------------------------------------------------------------- atomics

template <class T>
T atomicAdd(T* at, mach_shim::same<T> v) {
  return mach_shim::atomic(at, mach_shim::accumulates<T>(v), [=](T old) { return static_cast<T>(old + v); });
}
template <class T>
T atomicSub(T* at, mach_shim::same<T> v) {
  return mach_shim::atomic(at, mach_shim::accumulates<T>(v), [=](T old) { return static_cast<T>(old - v); });
}
template <class T>
T atomicMax(T* at, mach_shim::same<T> v) {
  return mach_shim::atomic(at, mach_shim::Atomic::accumulates, [=](T old) { return std::max(old, v); });
}
template <class T>
T atomicMin(T* at, mach_shim::same<T> v) {
  return mach_shim::atomic(at, mach_shim::Atomic::accumulates, [=](T old) { return std::min(old, v); });
}
template <class T>
T atomicOr(T* at, mach_shim::same<T> v) {
  return mach_shim::atomic(at, mach_shim::accumulates<T>(v), [=](T old) { return old | v; });
}
template <class T>
T atomicAnd(T* at, mach_shim::same<T> v) {
  return mach_shim::atomic(at, mach_shim::Atomic::accumulates, [=](T old) { return old & v; });
}
template <class T>
T atomicXor(T* at, mach_shim::same<T> v) {
  return mach_shim::atomic(at, mach_shim::accumulates<T>(v), [=](T old) { return old ^ v; });
}
template <class T>
T atomicExch(T* at, mach_shim::same<T> v) {
  return mach_shim::atomic(at, mach_shim::Atomic::takes, [=](T) { return v; });
}
template <class T>
T atomicCAS(T* at, mach_shim::same<T> compare, mach_shim::same<T> v) {
  return mach_shim::atomic(at, mach_shim::Atomic::other, [=](T old) { return old == compare ? v : old; });
}

// ----------------------------------------------------------------------------------------- arithmetic

template <class T>
MACH_SHIM_UNSEEN T __ldg(const T* p) {  // by a cache that does not see what the kernel writes
  mach_shim::note_constant_read(p, sizeof(T), __builtin_return_address(0));
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
MACH_SHIM_UNSEEN T __ldcg(const T* p) {  // past what another block's atomic operations don't reach
  mach_shim::note_relaxed_read(p, sizeof(T), __builtin_return_address(0));
  return *p;
}
template <class T>
void __stcs(T* p, T value) {
  *p = value;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline unsigned __brev(unsigned x) {
  unsigned out = 0;
  for (int i = 0; i < 32; ++i) out |= (x >> i & 1u) << (31 - i);
  return out;
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = uint64_t{y} << 32 | x;
  unsigned out = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned s = selector >> (4 * i) & 15;
    unsigned byte = static_cast<unsigned>(bytes >> (8 * (s & 7))) & 0xff;
    if (s & 8) byte = byte & 0x80 ? 0xff : 0;  // the sign, repeated
    out |= byte << (8 * i);
  }
  return out;
}
inline unsigned __vadd2(unsigned a, unsigned b) {
  return ((a & 0xffff0000u) + (b & 0xffff0000u)) | ((a + b) & 0xffffu);
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((uint64_t{high} << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((uint64_t{high} << 32 | low) >> (shift & 31));
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}

inline unsigned __float_as_uint(float x) { return mach_shim::from_bits<unsigned>(mach_shim::bits(x)); }
inline int __float_as_int(float x) { return mach_shim::from_bits<int>(mach_shim::bits(x)); }
inline float __uint_as_float(unsigned x) { return mach_shim::from_bits<float>(x); }
inline float __int_as_float(int x) { return mach_shim::from_bits<float>(mach_shim::bits(x)); }
inline long long __double_as_longlong(double x) {
  return mach_shim::from_bits<long long>(mach_shim::bits(x));
}
inline double __longlong_as_double(long long x) { return mach_shim::from_bits<double>(mach_shim::bits(x)); }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __ll2float_rn(long long x) { return static_cast<float>(x); }
inline int __float2int_rn(float x) { return static_cast<int>(rintf(x)); }
inline int __float2int_rd(float x) { return static_cast<int>(floorf(x)); }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }

#define MACH_SHIM_MINMAX(T)                        \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }
MACH_SHIM_MINMAX(int)
MACH_SHIM_MINMAX(unsigned)
MACH_SHIM_MINMAX(long)
MACH_SHIM_MINMAX(unsigned long)
MACH_SHIM_MINMAX(long long)
MACH_SHIM_MINMAX(unsigned long long)
#undef MACH_SHIM_MINMAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
