#include "bucket_forward_int8.h"

#if !defined(MACH_ISA_IS_Scalar)
#include <immintrin.h>
#endif

namespace mach {
namespace {

// The sums of a tile, one for each bucket, in registers. add() adds a word's products to them.
template <class Isa>
struct Sums {
  int32_t sum[kTileBuckets] = {};

  inline void add(uint32_t units, const int8_t* w) {
    int32_t u[kWordUnits];
    for (int i = 0; i < kWordUnits; ++i) u[i] = static_cast<int32_t>(units >> 8 * i & 0xFF);
    for (int64_t b = 0; b < kTileBuckets; ++b)
      sum[b] += u[0] * w[4 * b] + u[1] * w[4 * b + 1] + u[2] * w[4 * b + 2] + u[3] * w[4 * b + 3];
  }
  inline void store(int32_t* out) const {
    for (int64_t b = 0; b < kTileBuckets; ++b) out[b] = sum[b];
  }
};

#if defined(MACH_ISA_IS_Avx2)
template <>
struct Sums<Avx2> {
  __m256i sum[8] = {};

  inline void add(uint32_t units, const int8_t* w) {
    const __m256i u = _mm256_set1_epi32(static_cast<int>(units)), ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const __m256i weights = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w) + i);
      sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(_mm256_maddubs_epi16(u, weights), ones));
    }
  }
  inline void store(int32_t* out) const {
    for (int i = 0; i < 8; ++i) _mm256_storeu_si256(reinterpret_cast<__m256i*>(out) + i, sum[i]);
  }
};
#endif

#if defined(MACH_ISA_IS_Avx512) || defined(MACH_ISA_IS_Avx512Vnni)
template <>
struct Sums<MACH_ISA> {
  __m512i sum[4] = {};

  inline void add(uint32_t units, const int8_t* w) {
    const __m512i u = _mm512_set1_epi32(static_cast<int>(units));
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m512i weights = _mm512_loadu_si512(w + 64 * i);
#if defined(MACH_ISA_IS_Avx512Vnni)
      sum[i] = _mm512_dpbusd_epi32(sum[i], u, weights);
#else
      const __m512i pairs = _mm512_maddubs_epi16(u, weights);
      sum[i] = _mm512_add_epi32(sum[i], _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#endif
    }
  }
  inline void store(int32_t* out) const {
    for (int i = 0; i < 4; ++i) _mm512_storeu_si512(out + 16 * i, sum[i]);
  }
};
#endif

}  // namespace

template <class Isa>
void round_hidden(const float* hidden, int64_t H, const HiddenWords& words, int64_t row, int64_t num_words) {
  // Floats that are not negative have the order of their bits. These loops vectorise, those of floats don't.
  int32_t most_bits = 0, magnitude = 0;
  for (int64_t h = 0; h < H; ++h) {
    int32_t bits;
    __builtin_memcpy(&bits, hidden + h, sizeof bits);
    const int32_t absolute = bits & 0x7FFFFFFF;
    most_bits = bits > most_bits ? bits : most_bits;
    magnitude = absolute > magnitude ? absolute : magnitude;
  }
  float most;
  __builtin_memcpy(&most, &most_bits, sizeof most);
  const bool finite = magnitude < 0x7F800000;
  words.scale[row] = finite ? most / 127.0f : __builtin_nanf("");
  words.count[row] = 0;
  if (!finite || most_bits == 0) return;
  uint32_t* units = words.units + row * num_words;
  uint8_t* q = reinterpret_cast<uint8_t*>(units);
  for (int64_t h = 0; h < H; ++h) {
    const float x = hidden[h] > 0.0f ? hidden[h] : 0.0f;
    q[h] = static_cast<uint8_t>(static_cast<int32_t>(x / most * 127.0f + 0.5f));
  }
  for (int64_t h = H; h < kWordUnits * num_words; ++h) q[h] = 0;
  int32_t* at = words.at + row * num_words;
  int64_t count = 0;
  for (int64_t word = 0; word < num_words; ++word) {
    const uint32_t unit = units[word];
    units[count] = unit;
    at[count] = static_cast<int32_t>(word);
    count += unit != 0;
  }
  words.count[row] = count;
}

template <class Isa>
void bucket_forward_int8(const BucketForwardInt8& p, const HiddenWords& words, float* logits, int64_t begin,
                         int64_t end) {
  constexpr int64_t kWordBytes = kTileBuckets * kWordUnits;
  for (int64_t t = begin; t < end; ++t) {
    const int64_t r = t / p.tiles, first = t % p.tiles * kTileBuckets;
    const int64_t buckets = p.B - first < kTileBuckets ? p.B - first : kTileBuckets;
    const int8_t* weight = p.weight + t * p.words * kWordBytes;
    const float* scale = p.scale + r * p.B + first;
    const float* bias = p.bias ? p.bias + r * p.B + first : nullptr;
    for (int64_t n = 0; n < words.documents; ++n) {
      const int64_t row = (words.encoders == 1 ? 0 : r) * words.documents + n, count = words.count[row];
      const uint32_t* units = words.units + row * p.words;
      const int32_t* at = words.at + row * p.words;
      Sums<Isa> sums;
      for (int64_t i = 0; i < count; ++i) sums.add(units[i], weight + at[i] * kWordBytes);
      int32_t sum[kTileBuckets];
      sums.store(sum);
      float* z = logits + (n * p.R + r) * p.B + first;
      const float s = words.scale[row];
      // In this order a sum of 0 stays 0, however large the scales are.
      for (int64_t b = 0; b < buckets; ++b) z[b] = static_cast<float>(sum[b]) * scale[b] * s;
      if (bias)
        for (int64_t b = 0; b < buckets; ++b) z[b] += bias[b];
    }
  }
}

template void round_hidden<MACH_ISA>(const float*, int64_t, const HiddenWords&, int64_t, int64_t);
template void bucket_forward_int8<MACH_ISA>(const BucketForwardInt8&, const HiddenWords&, float*, int64_t,
                                            int64_t);

}  // namespace mach
