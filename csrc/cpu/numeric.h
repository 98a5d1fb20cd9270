// Element types and the one summation order that kernels share.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>

// What CUDA kernels use, too.
#ifdef __CUDACC__
#define MACH_EVERYWHERE __host__ __device__
#else
#define MACH_EVERYWHERE
#endif

namespace mach {

// bfloat16 in memory, float in arithmetic.
struct bf16 {
  uint16_t bits;
  operator float() const {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
};

// To the nearest bfloat16, ties to even. NaN stays NaN.
MACH_EVERYWHERE inline bf16 round_to_bf16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = bits + 0x7FFF + (bits >> 16 & 1);
  return bf16{static_cast<uint16_t>((x != x ? 0x7FC00000 : rounded) >> 16)};
}

// float16 in memory, for CUDA kernels only.
struct fp16 {
  uint16_t bits;
};

// Column sums of bucket_bce, in an order that depends on the number of rows alone. Blocks of kBceRows rows
// are summed row by row. Sum i of kBceSums then adds the blocks i, i + kBceSums, ..., and the sums are added
// in order.
constexpr int64_t kBceRows = 16, kBceSums = 8;

#ifndef __CUDACC__
// kWidth neighbours in memory as one value: elementwise arithmetic, in one register or in several.
template <class T, int64_t kWidth>
using Vector __attribute__((vector_size(kWidth * sizeof(T)), aligned(sizeof(T)), may_alias)) = T;
#endif

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

// exp(x) for x <= 0, within 2 ulp, as straight-line arithmetic: loops over it vectorise, and every ISA
// returns the same bits. float64 takes the C library's.
template <class Isa>
MACH_EVERYWHERE inline float exp_nonpositive(float x) {
  // x = n ln 2 + r, |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  constexpr float kRound = 12582912.0f;
  constexpr int32_t kRoundBits = 0x4B400000;
  const float rounded = x * 1.44269504f + kRound;
  const float n = rounded - kRound;
  const float r =
      (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts, the first exact in n * ln 2
  // Taylor to r^7 in pairs (Estrin): short chains, for what waits for its own result leaves the core idle.
  const float r2 = r * r;
  const float low = (1.0f + r) + (0.5f + r * (1.0f / 6)) * r2;
  const float high = (1.0f / 24 + r * (1.0f / 120)) + (1.0f / 720 + r * (1.0f / 5040)) * r2;
  const float p = low + high * (r2 * r2);
  int32_t bits;
  __builtin_memcpy(&bits, &rounded, sizeof bits);
  bits = static_cast<int32_t>(static_cast<uint32_t>(bits - kRoundBits + 127) << 23);
  float power;  // 2^n
  __builtin_memcpy(&power, &bits, sizeof power);
  return x < -87.0f ? 0.0f : p * power;
}
template <class Isa>
MACH_EVERYWHERE inline double exp_nonpositive(double x) {
  return ::exp(x);
}

// log(1 + e) and 1 / (1 + e) for 0 <= e <= 1, within 3 ulp, likewise; a division is what costs here, so the
// two share one.
template <class Isa>
MACH_EVERYWHERE inline void log1p_and_inverse(float e, float& log1p, float& inverse) {
  const float a = 1.0f + e, b = 2.0f + e, q = 1.0f / (a * b);
  inverse = b * q;
  // log(1 + e) = 2 atanh(s), s = e / (2 + e) <= 1/3. 1e-12 changes nothing but keeps powers from underflow,
  // which is slow.
  const float s = e * (a * q), s2 = s * s + 1e-12f, s4 = s2 * s2;
  const float low = 1.0f / 3 + s2 * (1.0f / 5), middle = 1.0f / 7 + s2 * (1.0f / 9);
  const float p = low + s4 * (middle + s4 * (1.0f / 11 + s2 * (1.0f / 13)));
  log1p = 2.0f * s + 2.0f * s * (s2 * p);
}
template <class Isa>
MACH_EVERYWHERE inline void log1p_and_inverse(double e, double& log1p, double& inverse) {
  log1p = ::log1p(e);
  inverse = 1.0 / (1.0 + e);
}

// softplus(x) and sigmoid(x). With e = exp(-|x|) nothing overflows: softplus = max(x, 0) + log(1 + e),
// sigmoid = 1 / (1 + e) or e / (1 + e).
template <class Isa, class T>
MACH_EVERYWHERE inline void logistic(T x, T& softplus, T& sigmoid) {
  const T e = exp_nonpositive<Isa>(x < 0 ? x : -x);
  T log1p, inverse;
  log1p_and_inverse<Isa>(e, log1p, inverse);
  softplus = (x < 0 ? T(0) : x) + log1p;
  sigmoid = (x < 0 ? e : T(1)) * inverse;
}

}  // namespace mach
