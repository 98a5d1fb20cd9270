#include "extremes.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mach {
namespace {

// Bit i: values[i] > threshold, of 64.
template <class Isa>
inline uint64_t above_64(const float* values, float threshold) {
  uint64_t mask = 0;
#if defined(MACH_ISA_IS_Avx512)
  const __m512 t = _mm512_set1_ps(threshold);
  for (int i = 0; i < 4; ++i)
    mask |= static_cast<uint64_t>(_mm512_cmp_ps_mask(_mm512_loadu_ps(values + 16 * i), t, _CMP_GT_OQ))
            << (16 * i);
#elif defined(MACH_ISA_IS_Avx2)
  const __m256 t = _mm256_set1_ps(threshold);
  for (int i = 0; i < 8; ++i)
    mask |= static_cast<uint64_t>(
                _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(values + 8 * i), t, _CMP_GT_OQ)))
            << (8 * i);
#else
  for (int i = 0; i < 64; ++i) mask |= static_cast<uint64_t>(values[i] > threshold) << i;
#endif
  return mask;
}

}  // namespace

template <class Isa>
bool lane_extremes(const float* scores, int64_t count, float* low, float* high) {
  constexpr int kLanes = 16;
  constexpr float kInfinity = __builtin_inff();
  // Four of them in turn: a comparison need not wait for the one before.
  typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));
  typedef int32_t Faults __attribute__((vector_size(kLanes * sizeof(int32_t))));
  constexpr int kTurns = 4;
  Lanes least[kTurns], greatest[kTurns];
  Faults fault[kTurns];
  for (int t = 0; t < kTurns; ++t)
    least[t] = Lanes{} + kInfinity, greatest[t] = Lanes{} - kInfinity, fault[t] = Faults{};
  const auto take = [&](int t, const Lanes& x) {
    fault[t] |= ~(x < kInfinity);
    least[t] = x < least[t] ? x : least[t];
    greatest[t] = x > greatest[t] ? x : greatest[t];
  };
  int64_t i = 0;
  Lanes x;
  for (; i + kTurns * kLanes <= count; i += kTurns * kLanes)
    for (int t = 0; t < kTurns; ++t) {
      __builtin_memcpy(&x, scores + i + t * kLanes, sizeof x);
      take(t, x);
    }
  for (; i + kLanes <= count; i += kLanes) {
    __builtin_memcpy(&x, scores + i, sizeof x);
    take(0, x);
  }
  int32_t faults = 0;
  for (int j = 0; j < kLanes; ++j) {
    low[j] = least[0][j], high[j] = greatest[0][j];
    for (int t = 0; t < kTurns; ++t) {
      low[j] = least[t][j] < low[j] ? least[t][j] : low[j];
      high[j] = greatest[t][j] > high[j] ? greatest[t][j] : high[j];
      faults |= fault[t][j];
    }
  }
  for (int j = 0; i < count; ++i, ++j) {
    low[j] = scores[i] < low[j] ? scores[i] : low[j];
    high[j] = scores[i] > high[j] ? scores[i] : high[j];
    faults |= !(scores[i] < kInfinity);
  }
  return faults == 0;
}

template <class Isa>
int64_t find_above(const float* values, int64_t count, float threshold, int32_t* positions, int64_t room) {
  constexpr int kBlock = 64;
  int64_t found = 0, i = 0;
  const auto keep = [&](uint64_t above) {
    for (; above && found < room; above &= above - 1)
      positions[found++] = static_cast<int32_t>(i + __builtin_ctzll(above));
  };
  for (; i + kBlock <= count && found < room; i += kBlock) keep(above_64<Isa>(values + i, threshold));
  for (; i < count; ++i) keep(values[i] > threshold);
  return found;
}

#define MACH_EXTREMES(ISA)                                                 \
  template bool lane_extremes<ISA>(const float*, int64_t, float*, float*); \
  template int64_t find_above<ISA>(const float*, int64_t, float, int32_t*, int64_t);
MACH_EXTREMES(MACH_ISA)

}  // namespace mach
