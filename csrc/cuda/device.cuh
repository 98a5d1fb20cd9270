// What kernels share. nvcc compiles this file, and g++ compiles it with MACH_SHIM for the tests that run
// kernels without a GPU (tests/cuda_shim). For their sake all shared memory is dynamic, and launches go
// through MACH_LAUNCH. The primitives of cuda_pipeline_primitives.h (cp.async) are there too. Features of
// nvcc alone (PTX, CUB) stand in `#ifndef MACH_SHIM` beside a plain version.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace mach {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Of the current device; 0 where it doesn't say.
inline int device_attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  return cudaDeviceGetAttribute(&value, which, device) == cudaSuccess ? value : 0;
}

// So many blocks as the extent of a grid, for launches that need one for each piece of work. More than a grid
// can have become 0, which a launch refuses.
constexpr unsigned grid_extent(int64_t blocks) {
  return blocks >= 0 && blocks < int64_t{1} << 31 ? static_cast<unsigned>(blocks) : 0;
}
static_assert(grid_extent((int64_t{1} << 31) - 1) == 0x7fffffff && grid_extent((int64_t{1} << 32) + 1) == 0,
              "a grid that is too large must not wrap round");

// Stores several numbers by one instruction. A plain store of a vector is split into its numbers where
// another branch stores these one by one to the same place.
template <class Vector, class T>
__device__ __forceinline__ void store_whole(T* to, const Vector& value) {
  static_assert(sizeof(Vector) % sizeof(T) == 0, "whole numbers");
  __stcs(reinterpret_cast<Vector*>(to), value);
}

// MACH_LAUNCH(kernel, grid, block, bytes of shared memory, stream, arguments...) -> cudaError_t; the name of
// the kernel as it stands there is what reports call it; (kernel<A, B>) in parentheses.
#ifdef MACH_SHIM
#define MACH_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  (::mach_shim::use_stream(stream),                                 \
   ::mach_shim::launch(#kernel, kernel, grid, block, shared_bytes, __VA_ARGS__))

template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  return static_cast<T*>(::mach_shim::dynamic_shared());
}
#else
#define MACH_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::mach::launch(kernel, grid, block, shared_bytes, stream, __VA_ARGS__)

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, const Arguments&... arguments) {
  if (shared_bytes > 48 << 10) {  // more has to be asked for
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return cudaGetLastError(), error;
  }
  // clang-format off: it would cut >>> up
  kernel<<<grid, block, shared_bytes, stream>>>(arguments...);
  // clang-format on
  return cudaGetLastError();
}

// The block's shared memory, aligned to 16 bytes; undefined contents.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char mach_dynamic_shared[];
  return reinterpret_cast<T*>(mach_dynamic_shared);
}
#endif

// Blocks of one dimension, a multiple of kWarp threads.
__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int warp_id() { return static_cast<int>(threadIdx.x) / kWarp; }

// Sum over the warp, in all lanes: pairs at distance 16, then 8, 4, 2, 1. All lanes have the same bits, since
// a + b and b + a have.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    value += __shfl_xor_sync(kAllLanes, value, distance);
  return value;
}

template <class T>
__device__ __forceinline__ T warp_max(T value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, value, distance);
    value = value < other ? other : value;
  }
  return value;
}

}  // namespace mach
