#include "bucket_forward.h"

namespace mach {
template <class Isa, class T>
void bucket_forward(const BucketForward<T>& p, Transform transform, T* units, T* scores, int64_t begin,
                    int64_t end) {
  for (int64_t n = begin; n < end; ++n)
    for (int64_t g = 0; g < p.G; ++g) {
      const bf16* hidden = p.hidden + n * p.document_stride + g * p.repetition_stride;
      for (int64_t h = 0; h < p.H; ++h) units[h] = static_cast<T>(hidden[h]);
      T* row = scores + (n * p.G + g) * p.B;
      for (int64_t b = 0; b < p.B; ++b) {
        T z = dot<Isa>(units, p.weight + (g * p.B + b) * p.H, p.H);
        if (p.bias) z += p.bias[g * p.B + b];
        row[b] = transformed<Isa>(transform, z);
      }
    }
}

template void bucket_forward<MACH_ISA, float>(const BucketForward<float>&, Transform, float*, float*, int64_t,
                                              int64_t);

}  // namespace mach
