// bucket_svm: linear support vector machines for a tile of kSvmTile buckets of a repetition, solved side by
// side. For bucket b, y[n] is 1 if document n has a label in it, else -1. The bias is the weight of a feature
// that is 1 in every document. Each machine solves this problem:
//
//   minimise  |w|^2 / 2 + C sum_n max(0, 1 - y[n] w x[n])^2
//
// The method is coordinate descent on the dual (Hsieh et al., A dual coordinate descent method for
// large-scale linear SVM, ICML 2008). A pass visits the documents in a new random order. At each document its
// kSvmTile multipliers alpha >= 0 move to their best value, and w = sum_n alpha[n] y[n] x[n] follows. If all
// multipliers of a document are 0 and likely to stay 0, the next passes skip it (shrinking). The solver only
// ever stops after a pass over all documents.
//
// It comes near the optimum in few passes, where a document's few features are those of few others. Where
// documents share most features, or C is large, it needs many. A small D then has a better way
// (bucket_svm_newton.h).
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
  const T* scales;   // [N] 1 / min(max(1, |x|), 10), by which the projected gradient counts
  T C, tolerance;    // of the projected gradient: its largest less its smallest entry
  int64_t max_passes;
};

// Scratch of the calling thread. On entry w and alpha are 0, and positives holds the tile's labels: bit j of
// positives[n] is set if document n is positive for bucket j. `used` marks the buckets that exist and have a
// positive document. The other buckets are skipped, so their w stays 0.
template <class T>
struct SvmScratch {
  T* w;                       // [D + 1, kSvmTile], rows aligned to their size; the last is the bias
  T* alpha;                   // [N, kSvmTile]
  const uint16_t* positives;  // [N]
  int32_t* order;             // [N]
  uint32_t used;
};

struct SvmResult {
  int64_t passes;
  double violation;  // of the last pass over all documents; above the tolerance if the passes ran out
};

template <class Isa, class T>
SvmResult bucket_svm(const BucketSvm<T>& p, const SvmScratch<T>& s);

}  // namespace mach
