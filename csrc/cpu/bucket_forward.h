// bucket_forward: the bucket logits of a group of G repetitions out of bfloat16 hidden units and weights,
//   z[n, g, b] = sum_h hidden[n, g, h] weight[g, h, b] + bias[g, b].
// Products are exact in float. They are summed in float in the order of `dot` (numeric.h), then the bias is
// added. The kernel for GPUs is cuda/bucket_forward.cu. This one is for tests and for small inputs: PyTorch's
// products are faster.
#pragma once

#include <cstdint>

#include "../transform.h"
#include "isa.h"

namespace mach {

template <class T>
struct BucketForward {
  const bf16* hidden;  // element (n, g, h) at n document_stride + g repetition_stride + h
  int64_t document_stride, repetition_stride;  // repetition_stride 0: shared
  const bf16* weight;                          // [G, B, H]
  const T* bias;                               // [G, B] or null
  int64_t G, H, B;
};

// Scores [N, G, B] of documents [begin, end). `units` [H] is scratch of the calling thread.
template <class Isa, class T>
void bucket_forward(const BucketForward<T>& p, Transform transform, T* units, T* scores, int64_t begin,
                    int64_t end);

}  // namespace mach
