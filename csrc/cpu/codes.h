// A label's codes, which can hold anything (merge.h).
#pragma once

#include <cstdint>

#include "isa.h"
#include "label_index.h"

#if defined(MACH_ISA_IS_Avx2) || defined(MACH_ISA_IS_Avx512)
#include <immintrin.h>
#endif

namespace mach {

// Whether a label's codes are all below B.
template <class Isa>
inline bool codes_below(const uint16_t* codes, int64_t R, int64_t B) {
  const auto last = static_cast<uint16_t>(B < kMaxCodes ? B - 1 : kMaxCodes - 1);
#if defined(MACH_ISA_IS_Avx512)
  const __m512i highest = _mm512_set1_epi16(static_cast<int16_t>(last));
  __mmask32 above = 0;
  for (int64_t r = 0; r < R; r += 32) {
    const __mmask32 some = R - r < 32 ? (uint32_t(1) << (R - r)) - 1 : ~uint32_t(0);
    above |= _mm512_cmpgt_epu16_mask(_mm512_maskz_loadu_epi16(some, codes + r), highest);
  }
  return above == 0;
#else
  int64_t r = 0;
  int above = 0;
#if defined(MACH_ISA_IS_Avx2)
  const __m128i highest = _mm_set1_epi16(static_cast<int16_t>(last));
  __m128i more = _mm_setzero_si128();
  for (; r + 8 <= R; r += 8)
    more = _mm_or_si128(
        more, _mm_subs_epu16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + r)), highest));
  above = !_mm_testz_si128(more, more);
#endif
  for (; r < R; ++r) above |= codes[r] > last;
  return above == 0;
#endif
}

}  // namespace mach
