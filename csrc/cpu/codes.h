// A label's codes, which can hold anything (merge.h).
#pragma once

#include <cstdint>

#include "isa.h"
#include "label_index.h"

#if defined(MACH_ISA_IS_Avx2) || defined(MACH_ISA_IS_Avx512)
#include <immintrin.h>
#endif

namespace mach {

// Whether a label's R codes are all below B.
template <class Isa>
class CodesBelow {
 public:
  CodesBelow(int64_t R, int64_t B)
      : R_(R), last_(static_cast<uint16_t>(B < kMaxCodes ? B - 1 : kMaxCodes - 1)) {}

  bool operator()(const uint16_t* codes) const {
#if defined(MACH_ISA_IS_Avx512)
    if (R_ <= 32) {
      const __mmask32 all = ~uint32_t(0) >> (32 - R_);
      const __m512i some = _mm512_maskz_loadu_epi16(all, codes);
      return _mm512_cmpgt_epu16_mask(some, _mm512_set1_epi16(static_cast<int16_t>(last_))) == 0;
    }
#endif
    return each(codes);
  }

 private:
  // Apart from the loops that ask, which have no registers to spare.
  __attribute__((noinline)) bool each(const uint16_t* codes) const {
    int64_t r = 0;
    int above = 0;
#if defined(MACH_ISA_IS_Avx2) || defined(MACH_ISA_IS_Avx512)
    const __m128i highest = _mm_set1_epi16(static_cast<int16_t>(last_));
    __m128i more = _mm_setzero_si128();
    for (; r + 8 <= R_; r += 8)
      more = _mm_or_si128(
          more, _mm_subs_epu16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + r)), highest));
    above = !_mm_testz_si128(more, more);
#endif
    for (; r < R_; ++r) above |= codes[r] > last_;
    return above == 0;
  }

  int64_t R_;
  uint16_t last_;
};

}  // namespace mach
