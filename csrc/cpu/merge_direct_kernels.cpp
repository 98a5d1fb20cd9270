#include "merge_direct_kernels.h"

#include <type_traits>

#include "codes.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mach {
namespace {

// Bit i: values[i] > bounds[i], of 16.
template <class Isa>
inline uint32_t above_16(const float* values, const float* bounds) {
#if defined(MACH_ISA_IS_Avx512)
  return _mm512_cmp_ps_mask(_mm512_loadu_ps(values), _mm512_loadu_ps(bounds), _CMP_GT_OQ);
#elif defined(MACH_ISA_IS_Avx2)
  const auto eight = [&](int i) {
    return _mm256_movemask_ps(
        _mm256_cmp_ps(_mm256_loadu_ps(values + i), _mm256_loadu_ps(bounds + i), _CMP_GT_OQ));
  };
  return static_cast<uint32_t>(eight(0) | eight(8) << 8);
#else
  uint32_t mask = 0;
  for (int i = 0; i < 16; ++i) mask |= static_cast<uint32_t>(values[i] > bounds[i]) << i;
  return mask;
#endif
}

}  // namespace

template <class Isa>
void interleave_scores(const float* const* scores, int64_t B, float* rows) {
  constexpr int64_t kBuckets = 64;  // of one document after another, within the first-level cache
  for (int64_t first = 0; first < B; first += kBuckets) {
    const int64_t last = first + kBuckets < B ? first + kBuckets : B;
    for (int w = 0; w < kSumLanes; ++w)
      for (int64_t b = first; b < last; ++b) rows[b * kSumLanes + w] = scores[w] ? scores[w][b] : 0;
  }
}

template <class Isa>
void drop_unknown(const uint16_t* codes, int64_t R, int64_t B, const int32_t* labels, int64_t count,
                  uint32_t* documents) {
  const CodesBelow<Isa> known(R, B);
  for (int64_t i = 0; i < count; ++i)
    if (!known(codes + labels[i] * R)) documents[i] = 0;
}

template <class Isa>
int64_t sum_labels(const float* table, const uint16_t* codes, int64_t R, int64_t B, int64_t begin,
                   int64_t end, const float* above, int32_t* labels, uint32_t* documents, float* sums) {
  typedef float Lanes __attribute__((vector_size(kSumLanes * sizeof(float))));
  constexpr int kLabels = 4;
  int64_t found = 0;
  const auto some = [&](int64_t label, auto count) {
    constexpr int kCount = decltype(count)::value;
    Lanes sum[kCount];
    const uint16_t* code[kCount];
    for (int i = 0; i < kCount; ++i) {
      code[i] = codes + (label + i) * R;
      __builtin_memcpy(&sum[i], table + code[i][0] * kSumLanes, sizeof(Lanes));
    }
    const float* rows = table;
    for (int64_t r = 1; r < R; ++r) {
      rows += B * kSumLanes;
      for (int i = 0; i < kCount; ++i) {
        Lanes row;
        __builtin_memcpy(&row, rows + code[i][r] * kSumLanes, sizeof row);
        sum[i] += row;
      }
    }
    for (int i = 0; i < kCount; ++i)
      if (const uint32_t wanted = above_16<Isa>(reinterpret_cast<const float*>(&sum[i]), above)) {
        labels[found] = static_cast<int32_t>(label + i);
        documents[found] = wanted;
        __builtin_memcpy(sums + found++ * kSumLanes, &sum[i], sizeof(Lanes));
      }
  };
  int64_t label = begin;
  for (; label + kLabels <= end; label += kLabels) some(label, std::integral_constant<int, kLabels>());
  for (; label < end; ++label) some(label, std::integral_constant<int, 1>());
  return found;
}

#define MACH_MERGE_DIRECT(ISA)                                                                        \
  template void interleave_scores<ISA>(const float* const*, int64_t, float*);                         \
  template int64_t sum_labels<ISA>(const float*, const uint16_t*, int64_t, int64_t, int64_t, int64_t, \
                                   const float*, int32_t*, uint32_t*, float*);                        \
  template void drop_unknown<ISA>(const uint16_t*, int64_t, int64_t, const int32_t*, int64_t, uint32_t*);
MACH_MERGE_DIRECT(MACH_ISA)

}  // namespace mach
