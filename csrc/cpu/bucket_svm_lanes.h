// What both solvers of bucket_svm share. Included by their kernel files alone.
#pragma once

#include <cstdint>

#include "bucket_svm.h"
#include "numeric.h"

namespace mach {

// The tile's buckets. (GCC does not make vectors of such loops by itself.)
template <class T>
using Lanes = Vector<T, kSvmTile>;

// z = sum_f x_f w[f] + w[D]. Four sums, for one would wait for its own additions.
template <class Isa, class T>
inline void svm_scores(const BucketSvm<T>& p, const Lanes<T>* w, int64_t n, Lanes<T>& z) {
  constexpr int64_t kAhead = 8;  // non-zeros whose row of w is asked for before it is needed
  Lanes<T> sum[4] = {};
  const int64_t end = p.indptr[n + 1];
  int64_t e = p.indptr[n];
  for (; e + 4 <= end; e += 4) {
    // What lies behind the document's end is the next one's: needed soon, too.
    for (int64_t u = e + kAhead; u < e + kAhead + 4; ++u)
      if (u < p.indptr[p.N]) __builtin_prefetch(w + p.indices[u]);
    sum[0] += p.values[e] * w[p.indices[e]];
    sum[1] += p.values[e + 1] * w[p.indices[e + 1]];
    sum[2] += p.values[e + 2] * w[p.indices[e + 2]];
    sum[3] += p.values[e + 3] * w[p.indices[e + 3]];
  }
  for (; e < end; ++e) sum[0] += p.values[e] * w[p.indices[e]];
  z = (sum[0] + sum[1]) + (sum[2] + sum[3]) + w[p.D];
}

// out += x_n by.
template <class Isa, class T>
inline void svm_add_document(const BucketSvm<T>& p, int64_t n, const Lanes<T>& by, Lanes<T>* out) {
  for (int64_t e = p.indptr[n]; e < p.indptr[n + 1]; ++e) out[p.indices[e]] += p.values[e] * by;
  out[p.D] += by;
}

}  // namespace mach
