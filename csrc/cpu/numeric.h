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

// exp(x) for x <= 0 and log1p(x) for 0 <= x <= 1, within 2 ulp, as straight-line arithmetic: loops over them
// vectorise, and every ISA returns the same bits. float64 takes the C library's.
template <class Isa>
inline float exp_nonpositive(float x) {
  // x = n ln 2 + r, |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  constexpr float kRound = 12582912.0f;
  constexpr int32_t kRoundBits = 0x4B400000;
  const float rounded = x * 1.44269504f + kRound;
  const float n = rounded - kRound;
  const float r =
      (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts, the first exact in n * ln 2
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  int32_t bits;
  __builtin_memcpy(&bits, &rounded, sizeof bits);
  bits = static_cast<int32_t>(static_cast<uint32_t>(bits - kRoundBits + 127) << 23);
  float power;  // 2^n
  __builtin_memcpy(&power, &bits, sizeof power);
  return x < -87.0f ? 0.0f : p * power;
}
template <class Isa>
inline double exp_nonpositive(double x) {
  return __builtin_exp(x);
}

template <class Isa>
inline float log1p_unit(float x) {
  // log(1 + x) = 2 atanh(s), s = x / (2 + x) <= 1/3
  const float s = x / (2.0f + x), s2 = s * s;
  float p = 1.0f / 13;
  p = p * s2 + 1.0f / 11;
  p = p * s2 + 1.0f / 9;
  p = p * s2 + 1.0f / 7;
  p = p * s2 + 1.0f / 5;
  p = p * s2 + 1.0f / 3;
  return 2.0f * s + 2.0f * s * (s2 * p);
}
template <class Isa>
inline double log1p_unit(double x) {
  return __builtin_log1p(x);
}

}  // namespace mach
