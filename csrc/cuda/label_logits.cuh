// CUDA twin of cpu/label_logits.h: Z[n, j, r] = bias[r, b] + <hidden[n, (r,) :], W[r, :, b]>, b = buckets[r,
// labels[n, j]]. Sums have an order fixed by the shapes; no atomics. A label outside [0, L) reads nothing:
// its logits are NaN, its gradients zero.
//
// The gradient to the weight is that of a sparse_linear. Its "documents" are the rows of hidden, and its
// features are the R * B columns of the weight. Each (n, j, r) is an entry, whose value is the gradient of
// that logit. The entries are grouped by column (csr.cuh), and launch_feature_rows sums them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace mach {

template <class T>
struct LabelLogitsParams {
  const T* hidden;  // [N, H], shared by the repetitions, or [N, R, H]
  bool shared;
  const T* weight;         // [R, H, B]
  const T* bias;           // [R, B] or null
  const int32_t* buckets;  // [R, L]
  const int64_t* labels;   // [N, m]
  int64_t N, m, R, H, B, L;
};

// out [N, m, R]
template <class T>
cudaError_t launch_label_logits(const LabelLogitsParams<T>& params, T* out, cudaStream_t stream);

// grad [N, m, R] -> grad_hidden, as hidden; all of it is written.
template <class T>
cudaError_t launch_label_logits_grad_hidden(const LabelLogitsParams<T>& params, const T* grad, T* grad_hidden,
                                            cudaStream_t stream);

// For each entry (n, j, r), in this order: its column r * B + b of the weight, R * B where the label is out
// of range, and its row of hidden.
template <class Key>
struct LabelKeysParams {
  bool shared;
  const int32_t* buckets;  // [R, L]
  const int64_t* labels;   // [N, m]
  int64_t N, m, R, B, L;
  Key* keys;           // [N, m, R]
  int64_t* documents;  // [N, m, R]
};
template <class Key>
cudaError_t launch_label_keys(const LabelKeysParams<Key>& params, cudaStream_t stream);

}  // namespace mach
