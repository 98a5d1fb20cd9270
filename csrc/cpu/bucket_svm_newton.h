// The same problem as bucket_svm.h, solved in the primal: Newton's method for a tile of kSvmTile buckets side
// by side. A step minimises the quadratic model of the documents whose hinge is positive, by conjugate
// gradients, and a line search finds the best length of the step (Keerthi and DeCoste, A modified finite
// Newton method for fast solution of large scale linear SVMs, JMLR 2005).
//
// The preconditioner is the Hessian of a bucket whose documents all have a positive hinge, I + 2 C X'X. It is
// the same for every bucket, so it is factorised once (svm_factor). The start is the solution of that model,
// a ridge regression. Where few documents have a positive hinge, that preconditioner is a bad one. If
// conjugate gradients do not get through in some steps, the bucket's own Hessian is factorised.
#pragma once

#include <cstdint>

#include "bucket_svm.h"

namespace mach {

// Scratch of the calling thread. The rows of all arrays are lanes of the tile and aligned to their size.
template <class T>
struct SvmNewtonScratch {
  T *residual, *direction, *search, *product;  // [D + 1, kSvmTile]
  T* slack;                                    // [N, kSvmTile] 1 - y z
  T *change, *change_of_search;                // [N, kSvmTile] of the slack, by direction and by search
  int32_t* chosen;                             // [N]
  double* documents;                           // [kGramDocuments, D + 1], 0 on entry
  double* hessian;                             // [D + 1, D + 1]
};

// `factor` [D + 1, D + 1] is that of svm_factor. s.alpha and s.order are not used. The violation that decides
// is that of the dual at alpha = 2 C hinge, so the tolerance means the same as for bucket_svm. It is infinite
// where the numbers of the data overflow.
template <class Isa, class T>
SvmResult bucket_svm_newton(const BucketSvm<T>& p, const T* factor, const SvmScratch<T>& s,
                            const SvmNewtonScratch<T>& newton);

}  // namespace mach
