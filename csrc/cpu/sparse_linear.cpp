#include "sparse_linear.h"

namespace mach {

template <class Isa, class T, class W, class I>
void sparse_linear(const SparseLinear<T, W, I>& p, T* out, int64_t row_begin, int64_t row_end,
                   int64_t column_begin, int64_t column_end) {
  for (int64_t r = 0; r < p.R; ++r) {
    const W* weight = p.weight + r * p.D * p.M;
    for (int64_t n = row_begin; n < row_end; ++n) {
      T* __restrict y = out + (n * p.R + r) * p.M;
      for (int64_t m = column_begin; m < column_end; ++m) y[m] = p.bias ? p.bias[r * p.M + m] : T(0);

      const int64_t end = p.indptr[n + 1];
      int64_t e = p.indptr[n];
      bool in_range = true;
      for (int64_t q = e; q < end; ++q)
        in_range &= p.indices[q] >= 0 && static_cast<int64_t>(p.indices[q]) < p.D;
      if (!in_range) {
        for (int64_t m = column_begin; m < column_end; ++m) y[m] = static_cast<T>(__builtin_nan(""));
        continue;
      }
      // Four weight rows a pass: one load and store of y for four products, added in the row's order.
      for (; e + 4 <= end; e += 4) {
        const T v0 = p.values[e], v1 = p.values[e + 1], v2 = p.values[e + 2], v3 = p.values[e + 3];
        const W* w0 = weight + static_cast<int64_t>(p.indices[e]) * p.M;
        const W* w1 = weight + static_cast<int64_t>(p.indices[e + 1]) * p.M;
        const W* w2 = weight + static_cast<int64_t>(p.indices[e + 2]) * p.M;
        const W* w3 = weight + static_cast<int64_t>(p.indices[e + 3]) * p.M;
        for (int64_t m = column_begin; m < column_end; ++m)
          y[m] = (((y[m] + v0 * static_cast<T>(w0[m])) + v1 * static_cast<T>(w1[m])) +
                  v2 * static_cast<T>(w2[m])) +
                 v3 * static_cast<T>(w3[m]);
      }
      for (; e < end; ++e) {
        const T v = p.values[e];
        const W* w = weight + static_cast<int64_t>(p.indices[e]) * p.M;
        for (int64_t m = column_begin; m < column_end; ++m) y[m] += v * static_cast<T>(w[m]);
      }
      if (p.relu)  // written so that NaN stays NaN
        for (int64_t m = column_begin; m < column_end; ++m) y[m] = y[m] < T(0) ? T(0) : y[m];
    }
  }
}

template <class Isa, class T, class W, class I>
void sparse_linear_grad_values(const SparseLinear<T, W, I>& p, const T* grad, T* grad_values,
                               int64_t row_begin, int64_t row_end) {
  for (int64_t n = row_begin; n < row_end; ++n)
    for (int64_t e = p.indptr[n]; e < p.indptr[n + 1]; ++e) {
      const int64_t d = p.indices[e];
      T sum = 0;
      if (d >= 0 && d < p.D)
        for (int64_t r = 0; r < p.R; ++r)
          sum += dot<Isa>(grad + (n * p.R + r) * p.M, p.weight + (r * p.D + d) * p.M, p.M);
      grad_values[e] = sum;
    }
}

template <class Isa, class T>
void sparse_linear_grad_row(const T* values, const int64_t* position, const int64_t* row, int64_t begin,
                            int64_t end, const T* grad_r, int64_t grad_stride, T* __restrict grad_row,
                            int64_t M) {
  for (int64_t m = 0; m < M; ++m) grad_row[m] = 0;
  for (int64_t e = begin; e < end; ++e) {
    const T v = values[position[e]];
    const T* g = grad_r + row[e] * grad_stride;
    for (int64_t m = 0; m < M; ++m) grad_row[m] += v * g[m];
  }
}

#define MACH_WEIGHTED(ISA, T, W, I)                                                                          \
  template void sparse_linear<ISA, T, W, I>(const SparseLinear<T, W, I>&, T*, int64_t, int64_t, int64_t,     \
                                            int64_t);                                                        \
  template void sparse_linear_grad_values<ISA, T, W, I>(const SparseLinear<T, W, I>&, const T*, T*, int64_t, \
                                                        int64_t);
MACH_WEIGHTED(MACH_ISA, float, float, int32_t)
MACH_WEIGHTED(MACH_ISA, float, float, int64_t)
MACH_WEIGHTED(MACH_ISA, float, bf16, int32_t)
MACH_WEIGHTED(MACH_ISA, float, bf16, int64_t)
MACH_IF_SCALAR(MACH_WEIGHTED(Scalar, double, double, int32_t) MACH_WEIGHTED(Scalar, double, double, int64_t))

#define MACH_GRAD_ROW(ISA, T)                                                                              \
  template void sparse_linear_grad_row<ISA, T>(const T*, const int64_t*, const int64_t*, int64_t, int64_t, \
                                               const T*, int64_t, T*, int64_t);
MACH_INSTANTIATE_FLOATING(MACH_GRAD_ROW)

}  // namespace mach
