// label_logits: Z[n, j, r] = bias[r, b] + <hidden[n, (r,) :], W[r, :, b]>,  b = buckets[r, labels[n, j]]
// and its gradients: only the R * m buckets asked for, whatever L and B are.
//
// Layout: hidden [N, H], shared by the repetitions (hidden_r_stride = 0), or [N, R, H]; W [R, H, B];
// bias [R, B]; buckets [R, L]; labels [N, m]; Z and its gradient G [N, m, R]. All contiguous.
// A label outside [0, L) reads nothing: its logits are NaN, its gradients zero. So is the logit of a
// repetition in which the label's bucket is outside [0, B).
#pragma once

#include <cstdint>

#include "isa.h"
#include "numeric.h"

namespace mach {

template <class T>
struct LabelLogits {
  const T* hidden;
  int64_t hidden_n_stride, hidden_r_stride;
  const T* weight;         // [R, H, B]
  const T* bias;           // [R, B] or null
  const int32_t* buckets;  // [R, L]
  const int64_t* labels;   // [N, m]
  int64_t N, m, R, H, B, L;
};

template <class Isa, class T>
void label_logits(const LabelLogits<T>& p, T* out, int64_t row_begin, int64_t row_end);

// grad_hidden is laid out as hidden and must be zero on entry.
template <class Isa, class T>
void label_logits_grad_hidden(const LabelLogits<T>& p, const T* grad, T* grad_hidden, int64_t row_begin,
                              int64_t row_end);

// Rows h in [row_begin, row_end) of the flattened [R * H, B] weight; grad_weight zero on entry.
template <class Isa, class T>
void label_logits_grad_weight(const LabelLogits<T>& p, const T* grad, T* grad_weight, int64_t row_begin,
                              int64_t row_end);

// grad_bias [R, B], zero on entry.
template <class Isa, class T>
void label_logits_grad_bias(const LabelLogits<T>& p, const T* grad, T* grad_bias);

}  // namespace mach
