// Element types and the one summation order that kernels share.
#pragma once

#include <cstdint>
#include <cstring>

namespace mach {

// bfloat16 in memory, float in arithmetic. Storage only: kernels load it, never write it.
struct bf16 {
  uint16_t bits;
  operator float() const {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
};

// Dot product in a fixed order: lane i sums the elements i, i+16, ...; then the lanes are summed 0 ... 15.
// 16 lanes are one AVX-512 or two AVX2 registers, so every ISA can vectorise it and returns the same bits.
template <class Isa, class T, class W>
inline T dot(const T* x, const W* y, int64_t n, int64_t y_stride = 1) {
  constexpr int kLanes = 16;
  T lane[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int j = 0; j < kLanes; ++j) lane[j] += x[i + j] * static_cast<T>(y[(i + j) * y_stride]);
  for (int j = 0; i < n; ++i, ++j) lane[j] += x[i] * static_cast<T>(y[i * y_stride]);
  T sum = 0;
  for (int j = 0; j < kLanes; ++j) sum += lane[j];
  return sum;
}

}  // namespace mach
