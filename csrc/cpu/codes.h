// Checks of a label's codes. Users can write to the codes, so they can hold anything (merge_scores.h).
#pragma once

#include <cstdint>

#include "isa.h"
#include "label_index.h"

#if defined(MACH_ISA_IS_Avx2) || defined(MACH_ISA_IS_Avx512)
#include <immintrin.h>
#endif

namespace mach {

// Returns whether all codes are at most `last`. It is never inlined, because its callers have no free
// registers.
template <class Isa>
__attribute__((noinline)) bool codes_up_to(const uint16_t* codes, int64_t R, uint16_t last) {
  int64_t r = 0;
  int above = 0;
#if defined(MACH_ISA_IS_Avx2) || defined(MACH_ISA_IS_Avx512)
  const __m128i highest = _mm_set1_epi16(static_cast<int16_t>(last));
  __m128i more = _mm_setzero_si128();
  for (; r + 8 <= R; r += 8)
    more = _mm_or_si128(
        more, _mm_subs_epu16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + r)), highest));
  above = !_mm_testz_si128(more, more);
#endif
  for (; r < R; ++r) above |= codes[r] > last;
  return above == 0;
}

// Whether a label's R codes are all below B.
template <class Isa>
class CodesBelow {
 public:
  CodesBelow(int64_t R, int64_t B)
      : R_(R), last_(static_cast<uint16_t>(B < kMaxCodes ? B - 1 : kMaxCodes - 1)) {
#if defined(MACH_ISA_IS_Avx512)
    all_ = R < 32 ? (uint32_t(1) << R) - 1 : ~uint32_t(0);
    highest_ = _mm512_set1_epi16(static_cast<int16_t>(last_));
#endif
  }

  bool operator()(const uint16_t* codes) const {
#if defined(MACH_ISA_IS_Avx512)
    if (R_ <= 32) return _mm512_cmpgt_epu16_mask(_mm512_maskz_loadu_epi16(all_, codes), highest_) == 0;
#endif
    return codes_up_to<Isa>(codes, R_, last_);
  }

 private:
  int64_t R_;
  uint16_t last_;
#if defined(MACH_ISA_IS_Avx512)
  __mmask32 all_;
  __m512i highest_;
#endif
};

}  // namespace mach
