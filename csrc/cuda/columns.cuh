// Tiles of 32 * kWidth columns of a row-major matrix, kWidth a lane: how the sparse kernels read rows of a
// weight or of a gradient.
//
// kAligned: rows start at a multiple of 16 bytes and have a length of such a multiple. A lane then takes
// kWidth neighbours, 16 bytes in a load, and a warp takes 512 bytes. Otherwise the elements of a lane are 32
// apart, so that each load of a warp is still contiguous. Columns past the end of the row are neither read
// nor written.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "../cpu/numeric.h"
#include "device.cuh"

namespace mach {

__host__ __device__ inline bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

__device__ inline float widen(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
__device__ inline float widen(fp16 x) { return __half2float(__ushort_as_half(x.bits)); }

// Where a lane's columns are: a tile begins at column `first`, of M.
template <int kWidth, bool kAligned>
struct Lane {
  int at, left;  // columns at, at + 1, ... (at + 32, ...) of the tile; those below `left` are in the row

  __device__ Lane(int64_t first, int64_t M) {
    left = static_cast<int>(M - first < 32 * kWidth ? M - first : 32 * kWidth);
    at = kAligned ? lane_id() * kWidth : lane_id();
  }
  __device__ bool has(int i) const { return (kAligned ? at : at + 32 * i) < left; }
  __device__ int column(int i) const { return kAligned ? at + i : at + 32 * i; }
};

// One lane's columns of a tile as they lie in memory: kWidth elements W, used as T.
template <class T, class W, int kWidth, bool kAligned>
struct Columns;

template <class T, class W, int kWidth>
struct Columns<T, W, kWidth, true> {
  static constexpr int kLoads = kWidth * static_cast<int>(sizeof(W)) / 16;
  uint4 raw[kLoads];

  __device__ void load(const W* row, const Lane<kWidth, true>& lane) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i)
      raw[i] = lane.has(0) ? __ldg(reinterpret_cast<const uint4*>(row + lane.at) + i) : uint4{};
  }
  __device__ T operator[](int i) const {
    const int word = i * static_cast<int>(sizeof(W)) / 4;
    const uint4& v = raw[word / 4];
    const uint32_t bits = word % 4 == 0 ? v.x : word % 4 == 1 ? v.y : word % 4 == 2 ? v.z : v.w;
    if constexpr (sizeof(W) == 4)
      return __uint_as_float(bits);
    else
      return widen(W{static_cast<uint16_t>(i % 2 ? bits >> 16 : bits)});
  }
};

template <class T, class W, int kWidth>
struct Columns<T, W, kWidth, false> {
  W raw[kWidth];

  __device__ void load(const W* row, const Lane<kWidth, false>& lane) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) raw[i] = lane.has(i) ? row[lane.column(i)] : W{};
  }
  __device__ T operator[](int i) const {
    if constexpr (sizeof(W) == 2)
      return widen(raw[i]);
    else
      return raw[i];
  }
};

// x into the columns that the row has.
template <class T, int kWidth, bool kAligned>
__device__ inline void store_columns(T* row, const Lane<kWidth, kAligned>& lane, const T (&x)[kWidth]) {
  if constexpr (kAligned) {
    static_assert(sizeof(T) == 4 && kWidth % 4 == 0);
    if (lane.has(0)) {
#pragma unroll
      for (int i = 0; i < kWidth; i += 4)
        *reinterpret_cast<float4*>(row + lane.at + i) = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; ++i)
      if (lane.has(i)) row[lane.at + 32 * i] = x[i];
  }
}

// The other way, for memory that this kernel also writes.
template <class T, int kWidth, bool kAligned>
__device__ inline void load_columns(const T* row, const Lane<kWidth, kAligned>& lane, T (&x)[kWidth]) {
  if constexpr (kAligned) {
#pragma unroll
    for (int i = 0; i < kWidth; i += 4) {
      const float4 v = lane.has(0) ? *reinterpret_cast<const float4*>(row + lane.at + i) : float4{};
      x[i] = v.x, x[i + 1] = v.y, x[i + 2] = v.z, x[i + 3] = v.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) x[i] = lane.has(i) ? row[lane.column(i)] : T(0);
  }
}

}  // namespace mach
