#include "label_logits.h"

namespace mach {
namespace {

// Bucket of the label at (n, j) in repetition r; -1 where the label, or what the table says, is out of range.
template <class T>
inline int64_t bucket_of(const LabelLogits<T>& p, int64_t n, int64_t j, int64_t r) {
  const int64_t label = p.labels[n * p.m + j];
  if (label < 0 || label >= p.L) return -1;
  const int64_t b = p.buckets[r * p.L + label];
  return b >= 0 && b < p.B ? b : -1;
}

}  // namespace

template <class Isa, class T>
void label_logits(const LabelLogits<T>& p, T* out, int64_t row_begin, int64_t row_end) {
  for (int64_t n = row_begin; n < row_end; ++n)
    for (int64_t r = 0; r < p.R; ++r) {
      const T* hidden = p.hidden + n * p.hidden_n_stride + r * p.hidden_r_stride;
      const T* weight = p.weight + r * p.H * p.B;
      for (int64_t j = 0; j < p.m; ++j) {
        const int64_t b = bucket_of(p, n, j, r);
        T& z = out[(n * p.m + j) * p.R + r];
        if (b < 0)
          z = static_cast<T>(__builtin_nan(""));
        else
          z = (p.bias ? p.bias[r * p.B + b] : T(0)) + dot<Isa>(hidden, weight + b, p.H, p.B);
      }
    }
}

template <class Isa, class T>
void label_logits_grad_hidden(const LabelLogits<T>& p, const T* grad, T* grad_hidden, int64_t row_begin,
                              int64_t row_end) {
  for (int64_t n = row_begin; n < row_end; ++n)
    for (int64_t r = 0; r < p.R; ++r) {
      T* __restrict gh = grad_hidden + n * p.hidden_n_stride + r * p.hidden_r_stride;
      for (int64_t j = 0; j < p.m; ++j) {
        const int64_t b = bucket_of(p, n, j, r);
        if (b < 0) continue;
        const T g = grad[(n * p.m + j) * p.R + r];
        const T* weight = p.weight + r * p.H * p.B + b;
        for (int64_t h = 0; h < p.H; ++h) gh[h] += g * weight[h * p.B];
      }
    }
}

template <class Isa, class T>
void label_logits_grad_weight(const LabelLogits<T>& p, const T* grad, T* grad_weight, int64_t row_begin,
                              int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t r = row / p.H, h = row % p.H;
    for (int64_t n = 0; n < p.N; ++n) {
      const T x = p.hidden[n * p.hidden_n_stride + r * p.hidden_r_stride + h];
      for (int64_t j = 0; j < p.m; ++j) {
        const int64_t b = bucket_of(p, n, j, r);
        if (b >= 0) grad_weight[row * p.B + b] += grad[(n * p.m + j) * p.R + r] * x;
      }
    }
  }
}

template <class Isa, class T>
void label_logits_grad_bias(const LabelLogits<T>& p, const T* grad, T* grad_bias) {
  for (int64_t n = 0; n < p.N; ++n)
    for (int64_t j = 0; j < p.m; ++j)
      for (int64_t r = 0; r < p.R; ++r) {
        const int64_t b = bucket_of(p, n, j, r);
        if (b >= 0) grad_bias[r * p.B + b] += grad[(n * p.m + j) * p.R + r];
      }
}

#define MACH_LABEL_LOGITS(ISA, T)                                                                        \
  template void label_logits<ISA, T>(const LabelLogits<T>&, T*, int64_t, int64_t);                       \
  template void label_logits_grad_hidden<ISA, T>(const LabelLogits<T>&, const T*, T*, int64_t, int64_t); \
  template void label_logits_grad_weight<ISA, T>(const LabelLogits<T>&, const T*, T*, int64_t, int64_t); \
  template void label_logits_grad_bias<ISA, T>(const LabelLogits<T>&, const T*, T*);
MACH_INSTANTIATE_FLOATING(MACH_LABEL_LOGITS)

}  // namespace mach
