#include "sparse_linear.h"

#if defined(MACH_ISA_IS_Avx512) || defined(MACH_ISA_IS_Avx2)
#include <immintrin.h>
#endif

namespace mach {
namespace {

// ---------------------------------------------------------------------------------------- column tiles
//
// All loops here hold a tile of columns in K registers while they run along the non-zeros. Each output is
// thus loaded and stored once, and not once for each product. The elements of a vector are never added to
// each other, so the width of the vectors changes no bit.

template <class Isa>
struct Registers {
  static constexpr int bytes = 16, tile = 8;  // of one register; registers in a tile
};
template <>
struct Registers<Avx2> {
  static constexpr int bytes = 32, tile = 8;
};
template <>
struct Registers<Avx512> {
  static constexpr int bytes = 64, tile = 16;
};

template <class T, int kBytes>
struct Vector {
  typedef T type __attribute__((vector_size(kBytes)));
};
template <>
struct Vector<float, sizeof(float)> {
  using type = float;
};
template <>
struct Vector<double, sizeof(double)> {
  using type = double;
};

// kBytes / sizeof(T) elements from p, as T.
template <class T, int kBytes>
inline typename Vector<T, kBytes>::type load(const T* p) {
  typename Vector<T, kBytes>::type v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class T, int kBytes>
inline typename Vector<T, kBytes>::type load(const bf16* p) {
  if constexpr (kBytes == sizeof(float)) {
    return *p;
  } else {
    typename Vector<uint16_t, kBytes / 2>::type narrow;
    __builtin_memcpy(&narrow, p, sizeof narrow);
    using Wide = typename Vector<uint32_t, kBytes>::type;
    Wide wide;
    // The compiler's own conversion goes by halves and costs as much as all the rest.
#if defined(MACH_ISA_IS_Avx512) || defined(MACH_ISA_IS_Avx2)
    if constexpr (kBytes == 16)
      wide = reinterpret_cast<Wide>(_mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
    if constexpr (kBytes == 32)
      wide = reinterpret_cast<Wide>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(narrow)));
#endif
#if defined(MACH_ISA_IS_Avx512)
    if constexpr (kBytes == 64)
      wide = reinterpret_cast<Wide>(_mm512_maskz_cvtepu16_epi32(-1, reinterpret_cast<__m256i>(narrow)));
#endif
#if defined(MACH_ISA_IS_Scalar)
    wide = __builtin_convertvector(narrow, Wide);
#endif
    return reinterpret_cast<typename Vector<float, kBytes>::type>(wide << 16);
  }
}
template <class T, int kBytes>
inline typename Vector<T, kBytes>::type load(const int8_t* p) {
  if constexpr (kBytes == sizeof(float)) {
    return static_cast<float>(*p);
  } else {
    typename Vector<int8_t, kBytes / 4>::type narrow;
    __builtin_memcpy(&narrow, p, sizeof narrow);
    using Wide = typename Vector<int32_t, kBytes>::type;
    Wide wide;
    // The compiler's own conversion goes by halves here as well.
#if defined(MACH_ISA_IS_Avx512) || defined(MACH_ISA_IS_Avx2)
    if constexpr (kBytes == 16) {
      int32_t bytes;
      __builtin_memcpy(&bytes, p, sizeof bytes);
      wide = reinterpret_cast<Wide>(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(bytes)));
    }
    if constexpr (kBytes == 32)
      wide =
          reinterpret_cast<Wide>(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#endif
#if defined(MACH_ISA_IS_Avx512)
    if constexpr (kBytes == 64)
      wide = reinterpret_cast<Wide>(_mm512_maskz_cvtepi8_epi32(-1, reinterpret_cast<__m128i>(narrow)));
#endif
#if defined(MACH_ISA_IS_Scalar)
    wide = __builtin_convertvector(narrow, Wide);
#endif
    return __builtin_convertvector(wide, typename Vector<float, kBytes>::type);
  }
}
template <class V, class T>
inline void store(T* p, const V& v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// tile.run<kBytes, K>(c) for columns [begin, end), each once: as wide as the registers of the ISA allow,
// narrower at the end, single elements last.
template <int kBytes, int K, class T, class Tile>
inline void run_tiles(const Tile& tile, int64_t begin, int64_t end) {
  constexpr int64_t kColumns = K * kBytes / static_cast<int64_t>(sizeof(T));
  for (; begin + kColumns <= end; begin += kColumns) tile.template run<kBytes, K>(begin);
  if constexpr (K > 1) {
    if (begin < end) run_tiles<kBytes, K / 2, T>(tile, begin, end);
  } else if constexpr (kBytes > static_cast<int>(sizeof(T))) {
    if (begin < end)
      run_tiles<(kBytes > 16 ? kBytes / 2 : static_cast<int>(sizeof(T))), 1, T>(tile, begin, end);
  }
}
template <class Isa, class T, class Tile>
inline void run_tiles(const Tile& tile, int64_t begin, int64_t end) {
  run_tiles<Registers<Isa>::bytes, Registers<Isa>::tile, T>(tile, begin, end);
}

// Asks for the cache lines of [p, p + bytes), no nearer than cache kLevel. The first level has too few lines
// under way to spare for long pieces that are long in coming. An address out of any array does no harm.
template <int kLevel = 2>
inline void prefetch(const void* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(p) + i, 0, 4 - kLevel);
}

// Address of weight row `index`, whatever the index.
template <class W, class I>
inline const W* row_address(const W* weight, I index, int64_t M) {
  return reinterpret_cast<const W*>(reinterpret_cast<uintptr_t>(weight) +
                                    static_cast<uintptr_t>(static_cast<int64_t>(index)) *
                                        static_cast<uintptr_t>(M * static_cast<int64_t>(sizeof(W))));
}

// Whether all of indices[begin ... end) are in [0, D): the largest as an unsigned number, in which a negative
// one is larger than any other.
inline bool in_range(const int32_t* indices, int64_t begin, int64_t end, int64_t D) {
  uint32_t most = 0;
  for (int64_t e = begin; e < end; ++e) {
    const uint32_t index = static_cast<uint32_t>(indices[e]);
    most = index > most ? index : most;
  }
  return begin == end || (most <= 0x7FFFFFFFu && static_cast<int64_t>(most) < D);
}
inline bool in_range(const int64_t* indices, int64_t begin, int64_t end, int64_t D) {
  uint64_t most = 0;
  for (int64_t e = begin; e < end; ++e) {
    const uint64_t index = static_cast<uint64_t>(indices[e]);
    most = index > most ? index : most;
  }
  return begin == end || most < static_cast<uint64_t>(D);
}

// ------------------------------------------------------------------------------------------ the two orders

// One document, entries [begin, end): a tile of its outputs, all its non-zeros. With kFar the weight rows are
// in memory, anywhere: each is asked for kAhead entries before it is used; after the last come the first ones
// of the next tile, or of the next document.
template <class T, class W, class I, bool kFar>
struct DocumentTile {
  const SparseLinear<T, W, I>& p;
  const W* weight;  // of this repetition
  const T* bias;    // of this repetition, or null
  T* y;             // [M]
  int64_t begin, end, column_end;

  template <int kBytes, int K>
  inline void run(int64_t c) const {
    using V = typename Vector<T, kBytes>::type;
    constexpr int64_t kWidth = kBytes / sizeof(T), kTileBytes = K * kWidth * sizeof(W);
    constexpr int64_t kAhead = kTileBytes >= 1024 ? 6 : kTileBytes >= 256 ? 12 : 24;
    const I* indices = p.indices;
    const T* values = p.values;
    const int64_t M = p.M, last = p.nnz - 1, next = c + K * kWidth;
    const W* w = weight + c;
    const W* then_w = next < column_end ? weight + next : weight;
    const int64_t then = next < column_end ? begin - end : 0;  // added to e + kAhead beyond the end
    V sum[K];
#pragma GCC unroll 16
    for (int k = 0; k < K; ++k) sum[k] = bias ? load<T, kBytes>(bias + c + k * kWidth) : V{};
    for (int64_t e = begin; e < end; ++e) {
      const T v = values[e];
      const W* row = w + static_cast<int64_t>(indices[e]) * M;
      if constexpr (kFar) {
        const bool here = e + kAhead < end;
        const int64_t ahead = here ? e + kAhead : e + kAhead + then;
        prefetch<(kTileBytes <= 512 ? 1 : 2)>(
            row_address(here ? w : then_w, indices[ahead < last ? ahead : last], M), kTileBytes);
      }
#pragma GCC unroll 16
      for (int k = 0; k < K; ++k) sum[k] = sum[k] + v * load<T, kBytes>(row + k * kWidth);
    }
    const bool relu = p.relu;
#pragma GCC unroll 16
    for (int k = 0; k < K; ++k) {
      if (relu) sum[k] = sum[k] < V{} ? V{} : sum[k];  // NaN stays NaN
      store(y + c + k * kWidth, sum[k]);
    }
  }
};

// One feature: its weight row in registers, added to a tile of the outputs of all its documents.
template <class T, class W, class I>
struct FeatureTile {
  const T* values;
  const FeatureOrder& order;
  const W* row;
  T* y;  // [N], stride apart
  int64_t stride, u;

  template <int kBytes, int K>
  inline void run(int64_t c) const {
    constexpr int64_t kWidth = kBytes / sizeof(T);
    typename Vector<T, kBytes>::type w[K];
#pragma GCC unroll 16
    for (int k = 0; k < K; ++k) w[k] = load<T, kBytes>(row + c + k * kWidth);
    const int64_t *position = order.positions, *document = order.documents, last = order.offsets[u + 1];
    const T* value = values;
    T* const first = y + c;
    const int64_t apart = stride;
    for (int64_t e = order.offsets[u]; e < last; ++e) {
      const T v = value[position[e]];
      T* out = first + document[e] * apart;
#pragma GCC unroll 16
      for (int k = 0; k < K; ++k) store(out + k * kWidth, load<T, kBytes>(out + k * kWidth) + v * w[k]);
    }
  }
};

// One feature's row of the weight gradient.
template <class T>
struct GradientTile {
  const T* values;
  const FeatureOrder& order;
  const T* grad;  // of this repetition
  int64_t stride, u;
  T* out;  // [M]

  template <int kBytes, int K>
  inline void run(int64_t c) const {
    constexpr int64_t kWidth = kBytes / sizeof(T);
    typename Vector<T, kBytes>::type sum[K] = {};
    for (int64_t e = order.offsets[u]; e < order.offsets[u + 1]; ++e) {
      const T v = values[order.positions[e]];
      const T* g = grad + order.documents[e] * stride + c;
#pragma GCC unroll 16
      for (int k = 0; k < K; ++k) sum[k] = sum[k] + v * load<T, kBytes>(g + k * kWidth);
    }
#pragma GCC unroll 16
    for (int k = 0; k < K; ++k) store(out + c + k * kWidth, sum[k]);
  }
};

}  // namespace

template <class Isa, class T, class W, class I>
void sparse_linear(const SparseLinear<T, W, I>& p, T* out, int64_t row_begin, int64_t row_end,
                   int64_t column_begin, int64_t column_end) {
  constexpr int64_t kCached = 1 << 20;  // bytes of a weight that is in a near cache anyway
  const bool far = p.D * p.M * static_cast<int64_t>(sizeof(W)) > kCached;
  for (int64_t r = 0; r < p.R; ++r) {
    const W* weight = p.weight + r * p.D * p.M;
    const T* bias = p.bias ? p.bias + r * p.M : nullptr;
    for (int64_t n = row_begin; n < row_end; ++n) {
      T* y = out + (n * p.R + r) * p.M;
      const int64_t begin = p.indptr[n], end = p.indptr[n + 1];
      if (!in_range(p.indices, begin, end, p.D))
        for (int64_t m = column_begin; m < column_end; ++m) y[m] = static_cast<T>(__builtin_nan(""));
      else if (far)
        run_tiles<Isa, T>(DocumentTile<T, W, I, true>{p, weight, bias, y, begin, end, column_end},
                          column_begin, column_end);
      else
        run_tiles<Isa, T>(DocumentTile<T, W, I, false>{p, weight, bias, y, begin, end, column_end},
                          column_begin, column_end);
    }
  }
}

template <class Isa, class T, class W, class I>
void sparse_linear_by_feature(const SparseLinear<T, W, I>& p, const FeatureOrder& order, T* out, int64_t N,
                              int64_t column_begin, int64_t column_end, T* scratch, int64_t width) {
  constexpr int64_t kAhead = 6;
  for (int64_t r = 0; r < p.R; ++r) {
    const W* weight = p.weight + r * p.D * p.M;
    const T* bias = p.bias ? p.bias + r * p.M : nullptr;
    for (int64_t first = column_begin; first < column_end; first += width) {
      const int64_t count = first + width < column_end ? width : column_end - first;
      for (int64_t n = 0; n < N; ++n)
        for (int64_t m = 0; m < count; ++m) scratch[n * width + m] = bias ? bias[first + m] : T(0);
      for (int64_t u = 0; u < order.U; ++u) {
        const int64_t ahead = u + kAhead < order.U ? u + kAhead : order.U - 1;
        prefetch(weight + order.features[ahead] * p.M + first, count * static_cast<int64_t>(sizeof(W)));
        const W* row = weight + order.features[u] * p.M + first;
        run_tiles<Isa, T>(FeatureTile<T, W, I>{p.values, order, row, scratch, width, u}, 0, count);
      }
      for (int64_t n = 0; n < N; ++n) {
        T* __restrict y = out + (n * p.R + r) * p.M + first;
        const T* sum = scratch + n * width;
        for (int64_t m = 0; m < count; ++m) y[m] = p.relu && sum[m] < T(0) ? T(0) : sum[m];  // NaN stays NaN
      }
    }
  }
}

template <class Isa, class T, class W, class I>
void sparse_linear_grad_values(const SparseLinear<T, W, I>& p, const T* grad, T* grad_values,
                               int64_t row_begin, int64_t row_end) {
  // A row's first lines are asked for ahead; the hardware follows a long row by itself.
  constexpr int64_t kAhead = 4, kMost = 4096;
  const int64_t row_bytes = p.M * static_cast<int64_t>(sizeof(W)),
                bytes = row_bytes < kMost ? row_bytes : kMost;
  for (int64_t r = 0; r < p.R; ++r) {
    const W* weight = p.weight + r * p.D * p.M;
    for (int64_t n = row_begin; n < row_end; ++n)
      for (int64_t e = p.indptr[n]; e < p.indptr[n + 1]; ++e) {
        prefetch(row_address(weight, p.indices[e + kAhead < p.nnz ? e + kAhead : p.nnz - 1], p.M), bytes);
        const int64_t d = p.indices[e];
        if (d >= 0 && d < p.D) grad_values[e] += dot<Isa>(grad + (n * p.R + r) * p.M, weight + d * p.M, p.M);
      }
  }
}

template <class Isa, class T>
void sparse_linear_grad_row(const T* values, const FeatureOrder& order, int64_t u, const T* grad_r,
                            int64_t grad_stride, T* grad_row, int64_t M) {
  run_tiles<Isa, T>(GradientTile<T>{values, order, grad_r, grad_stride, u, grad_row}, 0, M);
}

#define MACH_WEIGHTED(ISA, T, W, I)                                                                          \
  template void sparse_linear<ISA, T, W, I>(const SparseLinear<T, W, I>&, T*, int64_t, int64_t, int64_t,     \
                                            int64_t);                                                        \
  template void sparse_linear_by_feature<ISA, T, W, I>(const SparseLinear<T, W, I>&, const FeatureOrder&,    \
                                                       T*, int64_t, int64_t, int64_t, T*, int64_t);          \
  template void sparse_linear_grad_values<ISA, T, W, I>(const SparseLinear<T, W, I>&, const T*, T*, int64_t, \
                                                        int64_t);
MACH_WEIGHTED(MACH_ISA, float, float, int32_t)
MACH_WEIGHTED(MACH_ISA, float, float, int64_t)
MACH_WEIGHTED(MACH_ISA, float, bf16, int32_t)
MACH_WEIGHTED(MACH_ISA, float, bf16, int64_t)
MACH_WEIGHTED(MACH_ISA, float, int8_t, int32_t)
MACH_WEIGHTED(MACH_ISA, float, int8_t, int64_t)
MACH_IF_SCALAR(MACH_WEIGHTED(Scalar, double, double, int32_t) MACH_WEIGHTED(Scalar, double, double, int64_t))

#define MACH_GRAD_ROW(ISA, T)                                                                             \
  template void sparse_linear_grad_row<ISA, T>(const T*, const FeatureOrder&, int64_t, const T*, int64_t, \
                                               T*, int64_t);
MACH_INSTANTIATE_FLOATING(MACH_GRAD_ROW)

}  // namespace mach
