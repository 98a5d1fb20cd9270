#include "bucket_bce.h"

#include <cmath>

namespace mach {

template <class Isa, class T>
void bucket_bce(const BucketBce<T>& p, double* loss, int64_t* seen, int64_t row_begin, int64_t row_end) {
  for (int64_t n = row_begin; n < row_end; ++n) {
    T* z = p.logits + n * p.logits_stride;
    double sum = 0;
    // The positives' logits first: the pass below may overwrite them.
    for (int64_t e = p.label_indptr[n]; e < p.label_indptr[n + 1]; ++e) {
      const int64_t label = p.label_indices[e];
      if (label < 0 || label >= p.L) {
        sum = __builtin_nan("");
        continue;
      }
      const int32_t b = p.buckets[label];
      if (seen[b] == n) continue;
      seen[b] = n;
      sum -= z[b];
    }
    for (int64_t b = 0; b < p.B; ++b) {
      // With e = exp(-|z|) nothing overflows: softplus = max(z, 0) + log1p(e), sigmoid = 1/(1+e) or e/(1+e).
      const T e = std::exp(-std::fabs(z[b]));
      sum += (z[b] < 0 ? T(0) : z[b]) + std::log1p(e);
      if (p.gradient) {
        const T sigmoid = (z[b] < 0 ? e : T(1)) / (T(1) + e);
        z[b] = p.scale * (sigmoid - (seen[b] == n ? T(1) : T(0)));
      }
    }
    loss[n] = sum;
  }
}

#define MACH_BUCKET_BCE(ISA, T) \
  template void bucket_bce<ISA, T>(const BucketBce<T>&, double*, int64_t*, int64_t, int64_t);
MACH_INSTANTIATE_FLOATING(MACH_BUCKET_BCE)

}  // namespace mach
