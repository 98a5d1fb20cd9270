#include "svm_factor.h"

#include <math.h>

#include "numeric.h"

namespace mach {

template <class Isa, class T>
void svm_gram_rows(const SvmFactor<T>& p, int64_t begin, int64_t end, double* documents, double* gram) {
  const int64_t size = p.D + 1;
  for (int64_t i = begin; i < end; ++i)
    for (int64_t j = 0; j <= i; ++j) gram[i * size + j] = 0;
  double* x[kGramDocuments];
  for (int64_t k = 0; k < kGramDocuments; ++k) x[k] = documents + k * size;
  for (int64_t n = 0; n < p.N; n += kGramDocuments) {
    const int64_t count = p.N - n < kGramDocuments ? p.N - n : kGramDocuments;
    for (int64_t k = 0; k < count; ++k) {
      const int64_t at = p.chosen == nullptr ? n + k : p.chosen[n + k];
      for (int64_t e = p.indptr[at]; e < p.indptr[at + 1]; ++e) x[k][p.indices[e]] = p.values[e];
      x[k][p.D] = 1;
    }
    for (int64_t i = begin; i < end; ++i) {
      const double a = x[0][i], b = x[1][i], c = x[2][i], d = x[3][i];
      if (a == 0 && b == 0 && c == 0 && d == 0) continue;
      double* const row = gram + i * size;
      const double *x0 = x[0], *x1 = x[1], *x2 = x[2], *x3 = x[3];
#pragma GCC ivdep
      for (int64_t j = 0; j <= i; ++j) row[j] += (a * x0[j] + b * x1[j]) + (c * x2[j] + d * x3[j]);
    }
    for (int64_t k = 0; k < count; ++k) {
      const int64_t at = p.chosen == nullptr ? n + k : p.chosen[n + k];
      for (int64_t e = p.indptr[at]; e < p.indptr[at + 1]; ++e) x[k][p.indices[e]] = 0;
      x[k][p.D] = 0;
    }
  }
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t j = 0; j <= i; ++j) gram[i * size + j] *= 2 * p.C;
    gram[i * size + i] += 1;
  }
}

template <class Isa, class T>
void svm_cholesky(int64_t size, double* gram) {
  for (int64_t i = 0; i < size; ++i) {
    double* const row = gram + i * size;
    for (int64_t j = 0; j < i; ++j) {
      const double* other = gram + j * size;
      row[j] = (row[j] - dot<Isa>(row, other, j)) * other[j];
    }
    // At least 1 but for rounding: the identity is in it.
    const double left = row[i] - dot<Isa>(row, row, i);
    row[i] = 1 / sqrt(left > 1 ? left : 1.0);
  }
}

#define MACH_SVM_FACTOR(ISA, T)                                                                 \
  template void svm_gram_rows<ISA, T>(const SvmFactor<T>&, int64_t, int64_t, double*, double*); \
  template void svm_cholesky<ISA, T>(int64_t, double*);
MACH_INSTANTIATE_FLOATING(MACH_SVM_FACTOR)

}  // namespace mach
