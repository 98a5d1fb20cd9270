// Matrix products of one warp on tensor cores: D[16, 8] += A[16, 16] B[16, 8], bfloat16 in and float out
// (mma.sync.m16n8k16, sm_80 and later). All 32 lanes call each function together.
//
// Fragments, as the PTX ISA lays them out. Lane l has g = l / 4 and t = l % 4. A register of A or B holds two
// elements that are neighbours in k, the one of the lower k in its low half.
//   A  a[0]: row g, k 2t and 2t + 1;  a[1]: row g + 8;  a[2]: row g, k 2t + 8 and 2t + 9;  a[3]: row g + 8
//   B  b[0]: column g, k 2t and 2t + 1;  b[1]: column g, k 2t + 8 and 2t + 9
//   D  d[0], d[1]: row g, columns 2t and 2t + 1;  d[2], d[3]: row g + 8
//
// The products of two bfloat16 are exact in float. In which order a GPU adds the 16 of an entry, and how it
// rounds between them, is not specified. With MACH_SHIM they are added to the entry one after the other, from
// k = 0 to k = 15, each sum rounded to nearest.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "device.cuh"

namespace mach {

// Four matrices of 8 x 8 elements of 2 bytes out of shared memory. Lane l gives the address of row l % 8 of
// matrix l / 8: 16 bytes, aligned. Register i then holds, of row l / 4 of matrix i, the elements 2 (l % 4)
// and 2 (l % 4) + 1.
__device__ __forceinline__ void load_matrices(uint32_t (&out)[4], const void* row) {
#ifdef MACH_SHIM
  mach_shim::expect_row(row, {__builtin_FILE(), __builtin_LINE()});
  mach_shim::Meeting& lanes = mach_shim::meet("ldmatrix", kAllLanes, reinterpret_cast<uint64_t>(row),
                                              {__builtin_FILE(), __builtin_LINE()});
  for (int i = 0; i < 4; ++i)
    out[i] = reinterpret_cast<const uint32_t*>(lanes.value[8 * i + lane_id() / 4])[lane_id() % 4];
  mach_shim::leave(lanes);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
#endif
}

#ifdef MACH_SHIM
// Each lane shows its registers, two at a meeting, and adds up its own four entries.
inline void emulate_mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], mach_shim::Site site) {
  const auto show = [&](uint32_t low, uint32_t high) {
    return &mach_shim::meet("mma", kAllLanes, uint64_t{high} << 32 | low, site);
  };
  mach_shim::Meeting* const shown[3] = {show(a[0], a[1]), show(a[2], a[3]), show(b[0], b[1])};
  const auto element = [&](int lane, int which, int k) {
    const auto pair = static_cast<uint32_t>(shown[which / 2]->value[lane] >> (32 * (which % 2)));
    return __uint_as_float(k % 2 ? pair & 0xffff0000u : pair << 16);
  };
  const int g = lane_id() / 4, t = lane_id() % 4;
  for (int i = 0; i < 4; ++i) {
    const int column = 2 * t + i % 2;
    for (int k = 0; k < 16; ++k)
      d[i] +=
          element(4 * g + k % 8 / 2, k / 8 * 2 + i / 2, k) * element(4 * column + k % 8 / 2, 4 + k / 8, k);
  }
  for (mach_shim::Meeting* meeting : shown) mach_shim::leave(*meeting);
}
#endif

// d += A B.
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef MACH_SHIM
  emulate_mma(d, a, b, {__builtin_FILE(), __builtin_LINE()});
#elif __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

}  // namespace mach
