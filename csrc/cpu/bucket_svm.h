// bucket_svm: linear support vector machines of a tile of kSvmTile buckets of one repetition, solved side
// by side. For bucket b, with y[n] = 1 where document n has a label in it, else -1, and the bias as the
// weight of a feature that is 1 in every document:
//   minimise  |w|^2 / 2 + C sum_n max(0, 1 - y[n] w x[n])^2
// by coordinate descent on the dual (Hsieh et al., A dual coordinate descent method for large-scale linear
// SVM, ICML 2008): document after document, in an order that is shuffled for each pass, its kSvmTile
// multipliers alpha >= 0 move to their best value and w = sum_n alpha[n] y[n] x[n] follows. A document whose
// multipliers are all 0, and likely to stay so, is left out of the next passes (shrinking); the end is only
// ever declared after a pass over all of them.
#pragma once

#include <cstdint>

#include "isa.h"

namespace mach {

constexpr int64_t kSvmTile = 16;

template <class T>
struct BucketSvm {
  const T* values;
  const int32_t* indices;  // in [0, D), distinct in a document
  const int64_t* indptr;   // [N + 1]
  int64_t N, D;
  const T* squares;  // [N] |x|^2 + 1
  T C, tolerance;    // of the projected gradient: its largest less its smallest entry
  int64_t max_passes;
};

// Scratch of the calling thread. On entry w and alpha are 0 and positives holds the tile's labels: bit j of
// positives[n] is set where document n is positive for bucket j. used: the buckets that exist and have a
// positive; the others are passed over (their w stays 0).
template <class T>
struct SvmScratch {
  T* w;                       // [D + 1, kSvmTile], rows aligned to their size; the last is the bias
  T* alpha;                   // [N, kSvmTile]
  const uint16_t* positives;  // [N]
  int32_t* order;             // [N]
  uint32_t used;
};

// -> passes; max_passes + 1 where the tolerance was not reached.
template <class Isa, class T>
int64_t bucket_svm(const BucketSvm<T>& p, const SvmScratch<T>& s);

}  // namespace mach
