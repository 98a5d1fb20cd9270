#include "merge_scan_kernels.h"

#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mach {
namespace {

// W bytes, one a document. Rows<Isa, W>: add with saturation, compare.
template <class Isa, int W>
struct Rows {
  uint8_t byte[W];
  static Rows zero() { return Rows{}; }
  static Rows load(const uint8_t* p) {
    Rows v;
    __builtin_memcpy(v.byte, p, W);
    return v;
  }
  Rows plus(const Rows& o) const {
    Rows v;
    for (int i = 0; i < W; ++i) {
      const uint8_t sum = static_cast<uint8_t>(byte[i] + o.byte[i]);
      v.byte[i] = sum < byte[i] ? 255 : sum;
    }
    return v;
  }
  void store(uint8_t* p) const { __builtin_memcpy(p, byte, W); }
  Rows least(const Rows& o) const {
    Rows v;
    for (int i = 0; i < W; ++i) v.byte[i] = byte[i] < o.byte[i] ? byte[i] : o.byte[i];
    return v;
  }
  uint64_t at_least(const Rows& o) const {
    uint64_t mask = 0;
    for (int i = 0; i < W; ++i) mask |= static_cast<uint64_t>(byte[i] >= o.byte[i]) << i;
    return mask;
  }
};

#if defined(MACH_ISA_IS_Avx2) || defined(MACH_ISA_IS_Avx512)
template <>
struct Rows<MACH_ISA, 16> {
  __m128i v;
  static Rows zero() { return {_mm_setzero_si128()}; }
  static Rows load(const uint8_t* p) { return {_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))}; }
  Rows plus(const Rows& o) const { return {_mm_adds_epu8(v, o.v)}; }
  Rows least(const Rows& o) const { return {_mm_min_epu8(v, o.v)}; }
  void store(uint8_t* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), v); }
  uint64_t at_least(const Rows& o) const {
    return static_cast<uint32_t>(_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_max_epu8(v, o.v), v)));
  }
};

template <>
struct Rows<MACH_ISA, 32> {
  __m256i v;
  static Rows zero() { return {_mm256_setzero_si256()}; }
  static Rows load(const uint8_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
  Rows plus(const Rows& o) const { return {_mm256_adds_epu8(v, o.v)}; }
  Rows least(const Rows& o) const { return {_mm256_min_epu8(v, o.v)}; }
  void store(uint8_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  uint64_t at_least(const Rows& o) const {
    return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_max_epu8(v, o.v), v)));
  }
};
#endif

#if defined(MACH_ISA_IS_Avx2)
template <>
struct Rows<MACH_ISA, 64> {
  Rows<MACH_ISA, 32> low, high;
  static Rows zero() { return {Rows<MACH_ISA, 32>::zero(), Rows<MACH_ISA, 32>::zero()}; }
  static Rows load(const uint8_t* p) {
    return {Rows<MACH_ISA, 32>::load(p), Rows<MACH_ISA, 32>::load(p + 32)};
  }
  Rows plus(const Rows& o) const { return {low.plus(o.low), high.plus(o.high)}; }
  Rows least(const Rows& o) const { return {low.least(o.low), high.least(o.high)}; }
  void store(uint8_t* p) const { low.store(p), high.store(p + 32); }
  uint64_t at_least(const Rows& o) const { return low.at_least(o.low) | high.at_least(o.high) << 32; }
};
#elif defined(MACH_ISA_IS_Avx512)
template <>
struct Rows<MACH_ISA, 64> {
  __m512i v;
  static Rows zero() { return {_mm512_setzero_si512()}; }
  static Rows load(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
  Rows plus(const Rows& o) const { return {_mm512_adds_epu8(v, o.v)}; }
  Rows least(const Rows& o) const { return {_mm512_min_epu8(v, o.v)}; }
  void store(uint8_t* p) const { _mm512_storeu_si512(p, v); }
  uint64_t at_least(const Rows& o) const { return _mm512_cmpge_epu8_mask(v, o.v); }
};
#endif

// Adds repetitions [p.begin, p.end) of kLabels labels to their totals. Several labels at a time: their chains
// of additions are independent, and a repetition's base address is computed once.
template <class Isa, int W, int kLabels>
inline void add_rows(const ByteScan& p, const int64_t* labels, Rows<Isa, W>* total) {
  const uint8_t* rows = p.table + p.begin * p.B * W;
  const uint16_t* codes[kLabels];
  for (int i = 0; i < kLabels; ++i) codes[i] = p.codes + labels[i] * p.R;
  for (int64_t r = p.begin; r < p.end; ++r, rows += p.B * W)
    for (int i = 0; i < kLabels; ++i)
      total[i] = total[i].plus(Rows<Isa, W>::load(rows + static_cast<int64_t>(codes[i][r]) * W));
}

// Keeps a label at `found` if some document wants it; returns found or found + 1.
template <class Isa, int W>
inline int64_t keep(const ByteScan& p, const Rows<Isa, W>& bound, int64_t label, const Rows<Isa, W>& total,
                    int64_t found, int32_t* labels, uint64_t* documents, uint8_t* sums) {
  labels[found] = static_cast<int32_t>(label);
  documents[found] = total.at_least(bound) ^ p.below;
  total.store(sums + found * W);
  return found + (documents[found] != 0);
}

// 16 columns of 16 bytes -> 16 bytes of each of `count` rows
inline void transpose_16(const uint8_t* columns, int64_t column_stride, uint8_t* rows, int64_t stride,
                         int64_t count) {
#if defined(__SSE2__)
  if (count == 16) {
    __m128i a[16], b[16];
    for (int i = 0; i < 16; ++i)
      a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(columns + i * column_stride));
    // Four rounds of interleaving row i with row i + 8.
    for (int round = 0; round < 4; ++round) {
      for (int i = 0; i < 8; ++i) {
        b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]);
        b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
      }
      for (int i = 0; i < 16; ++i) a[i] = b[i];
    }
    for (int i = 0; i < 16; ++i) _mm_storeu_si128(reinterpret_cast<__m128i*>(rows + i * stride), a[i]);
    return;
  }
#endif
  for (int64_t b = 0; b < count; ++b)
    for (int w = 0; w < 16; ++w) rows[b * stride + w] = columns[w * column_stride + b];
}

}  // namespace

template <class Isa>
void quantize(const float* scores, int64_t B, float origin, float scale, uint8_t* bytes) {
  if (scale == 0) {
    for (int64_t b = 0; b < B; ++b) bytes[b] = scores[b] >= origin ? 0 : 1;
    return;
  }
  int64_t b = 0;
#if defined(MACH_ISA_IS_Avx512)
  const __m512 o = _mm512_set1_ps(origin), s = _mm512_set1_ps(scale), zero = _mm512_setzero_ps();
  for (; b + 16 <= B; b += 16) {  // the order of max's arguments: NaN -> 0
    const __m512 x = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + b), o), s);
    const __m512i steps = _mm512_cvttps_epi32(_mm512_min_ps(_mm512_max_ps(x, zero), _mm512_set1_ps(255)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes + b), _mm512_cvtepi32_epi8(steps));
  }
#elif defined(MACH_ISA_IS_Avx2)
  const __m256 o = _mm256_set1_ps(origin), s = _mm256_set1_ps(scale), zero = _mm256_setzero_ps();
  const auto eight = [&](int64_t at) {
    const __m256 x = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(scores + at), o), s);
    return _mm256_cvttps_epi32(_mm256_min_ps(_mm256_max_ps(x, zero), _mm256_set1_ps(255)));
  };
  for (; b + 32 <= B; b += 32) {  // packing works within halves: put the quarters in order at the end
    const __m256i low = _mm256_packs_epi32(eight(b), eight(b + 8));
    const __m256i high = _mm256_packs_epi32(eight(b + 16), eight(b + 24));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes + b),
                        _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order));
  }
#endif
  for (; b < B; ++b) {
    float x = (scores[b] - origin) * scale;
    x = x > 0 ? x : 0;
    x = x < 255 ? x : 255;
    bytes[b] = static_cast<uint8_t>(static_cast<int32_t>(x));
  }
}

template <class Isa, int W>
void transpose_bytes(const uint8_t* columns, int64_t stride, int64_t B, uint8_t* rows) {
  for (int64_t b = 0; b < B; b += 16)
    for (int w = 0; w < W; w += 16)
      transpose_16(columns + w * stride + b, stride, rows + b * W + w, W, B - b < 16 ? B - b : 16);
}

template <class Isa, int W>
int64_t scan_labels(const ByteScan& p, int64_t begin, int64_t end, int32_t* labels, uint64_t* documents,
                    uint8_t* sums) {
  using V = Rows<Isa, W>;
  const V bound = V::load(p.bound);
  constexpr int kLabels = 4;
  int64_t found = 0, label = begin;
  if (p.below == ~uint64_t(0) >> (64 - W)) {
    // The usual case, and nearly all of it labels that nobody wants: all documents want small sums.
    const uint8_t* table = p.table + p.begin * p.B * W;
    constexpr int64_t kAhead = 64;  // labels
    const int64_t stride = p.B * W, stage_end = p.end;
    const uint16_t *c0 = p.codes + label * p.R, *c1 = c0 + p.R, *c2 = c1 + p.R, *c3 = c2 + p.R;
    for (; label + kLabels <= end; label += kLabels) {
      // The codes come from memory, in order, but faster than the hardware asks for them.
      for (int64_t ahead = 0; ahead < kLabels * p.R; ahead += 32)
        __builtin_prefetch(c0 + kAhead * p.R + ahead);
      V s0 = V::zero(), s1 = s0, s2 = s0, s3 = s0;
      const uint8_t* rows = table;
#pragma GCC unroll 4
      for (int64_t r = p.begin; r < stage_end; ++r, rows += stride) {
        s0 = s0.plus(V::load(rows + static_cast<int64_t>(c0[r]) * W));
        s1 = s1.plus(V::load(rows + static_cast<int64_t>(c1[r]) * W));
        s2 = s2.plus(V::load(rows + static_cast<int64_t>(c2[r]) * W));
        s3 = s3.plus(V::load(rows + static_cast<int64_t>(c3[r]) * W));
      }
      c0 += 4 * p.R, c1 += 4 * p.R, c2 += 4 * p.R, c3 += 4 * p.R;
      if (s0.least(s1).least(s2.least(s3)).at_least(bound) == p.below) continue;
      const V total[kLabels] = {s0, s1, s2, s3};
      for (int i = 0; i < kLabels; ++i)
        found = keep(p, bound, label + i, total[i], found, labels, documents, sums);
    }
  }
  const auto some = [&](auto count) {
    constexpr int kCount = decltype(count)::value;
    int64_t ids[kCount];
    V total[kCount];
    for (int i = 0; i < kCount; ++i) ids[i] = label + i, total[i] = V::zero();
    add_rows<Isa, W, kCount>(p, ids, total);
    label += kCount;
    for (int i = 0; i < kCount; ++i) found = keep(p, bound, ids[i], total[i], found, labels, documents, sums);
  };
  while (label + kLabels <= end) some(std::integral_constant<int, kLabels>());
  while (label < end) some(std::integral_constant<int, 1>());
  return found;
}

template <class Isa, int W>
int64_t scan_again(const ByteScan& p, int64_t count, int32_t* labels, uint64_t* documents, uint8_t* sums) {
  using V = Rows<Isa, W>;
  const V bound = V::load(p.bound);
  constexpr int kLabels = 4;
  int64_t found = 0, at = 0;
  const auto some = [&](auto count) {
    constexpr int kCount = decltype(count)::value;
    int64_t ids[kCount];
    V total[kCount];
    for (int i = 0; i < kCount; ++i) ids[i] = labels[at + i], total[i] = V::load(sums + (at + i) * W);
    add_rows<Isa, W, kCount>(p, ids, total);
    at += kCount;
    for (int i = 0; i < kCount; ++i)  // never ahead of what was read
      found = keep(p, bound, ids[i], total[i], found, labels, documents, sums);
  };
  while (at + kLabels <= count) some(std::integral_constant<int, kLabels>());
  while (at < count) some(std::integral_constant<int, 1>());
  return found;
}

template <class Isa, int W>
void count_alive(const ByteScan& p, int64_t begin, int64_t end, int64_t* alive) {
  using V = Rows<Isa, W>;
  const V bound = V::load(p.bound);
  for (int64_t label = begin; label < end; ++label) {
    const uint16_t* codes = p.codes + label * p.R;
    V sum = V::zero();
    for (int64_t r = 0; r < p.R; ++r) {
      sum = sum.plus(V::load(p.table + (r * p.B + codes[r]) * W));
      if (!(sum.at_least(bound) ^ p.below)) break;
      ++alive[r];
    }
  }
}

#define MACH_ROWS(ISA, W)                                                                                 \
  template void transpose_bytes<ISA, W>(const uint8_t*, int64_t, int64_t, uint8_t*);                      \
  template int64_t scan_labels<ISA, W>(const ByteScan&, int64_t, int64_t, int32_t*, uint64_t*, uint8_t*); \
  template int64_t scan_again<ISA, W>(const ByteScan&, int64_t, int32_t*, uint64_t*, uint8_t*);           \
  template void count_alive<ISA, W>(const ByteScan&, int64_t, int64_t, int64_t*);
#define MACH_MERGE_SCAN(ISA) \
  MACH_ROWS(ISA, 16)         \
  MACH_ROWS(ISA, 32)         \
  MACH_ROWS(ISA, 64)         \
  template void quantize<ISA>(const float*, int64_t, float, float, uint8_t*);
MACH_MERGE_SCAN(MACH_ISA)

}  // namespace mach
