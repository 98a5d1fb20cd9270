// svm_factor: the Cholesky factor of I + 2 C X'X, where X has a last column of ones: [D + 1, D + 1], the
// preconditioner of bucket_svm_newton.h. The diagonal holds the inverses of the factor's.
#pragma once

#include <cstdint>

#include "isa.h"

namespace mach {

template <class T>
struct SvmFactor {
  const T* values;
  const int32_t* indices;  // in [0, D), distinct in a document
  const int64_t* indptr;   // [N + 1]
  const int32_t* chosen;   // [N] documents, or null: 0 ... N - 1
  int64_t N, D;
  double C;
};

constexpr int64_t kGramDocuments = 4;

// Rows [begin, end) of the lower triangle of I + 2 C X'X. `documents` is scratch of the calling thread:
// [kGramDocuments, D + 1], 0 on entry.
template <class Isa, class T>
void svm_gram_rows(const SvmFactor<T>& p, int64_t begin, int64_t end, double* documents, double* gram);

// Replaces the lower triangle by its factor.
template <class Isa, class T>
void svm_cholesky(int64_t size, double* gram);

}  // namespace mach
