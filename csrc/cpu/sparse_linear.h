// sparse_linear: Y[n, r, :] = act(bias[r, :] + sum_p values[p] * W[r, indices[p], :]),  p in the row n
// and its gradients. N documents (CSR), R repetitions, D features, M columns.
//
// Layout: W [R, D, M], bias [R, M], Y and its gradient G [N, R, M], all contiguous.
// Sums over non-zeros run in the order of the row (forward) or of the documents (weight gradient), so no
// result depends on how the work is split. An index outside [0, D) never touches memory: its output row is
// NaN, its gradients are zero.
#pragma once

#include <cstdint>

#include "isa.h"
#include "numeric.h"

namespace mach {

// The non-zeros of a batch grouped by feature: only features that occur, ascending; within a feature the
// entries keep their order, so they ascend in position and in document. Sums along it have one order,
// whatever the number of threads. Computed once a batch; forward, backward and all repetitions share it.
struct FeatureOrder {
  const int64_t* features;   // [U]     feature id
  const int64_t* offsets;    // [U + 1] entries of feature u: offsets[u] ... offsets[u + 1]
  const int64_t* positions;  // [E]     index into values / indices
  const int64_t* documents;  // [E]     row
  int64_t U, E;
};

template <class T, class W, class I>
struct SparseLinear {
  const T* values;        // [nnz]
  const I* indices;       // [nnz]
  const int64_t* indptr;  // [N + 1]
  const W* weight;        // [R, D, M]
  const T* bias;          // [R, M] or null
  int64_t nnz, R, D, M;
  bool relu;
};

// Documents [row_begin, row_end), columns [column_begin, column_end), all repetitions.
template <class Isa, class T, class W, class I>
void sparse_linear(const SparseLinear<T, W, I>& p, T* out, int64_t row_begin, int64_t row_end,
                   int64_t column_begin, int64_t column_end);

// The same result for all documents, computed feature by feature. A weight row is read once, and the outputs
// stay in the cache. This suits batches whose features repeat. All features must be in range and ascend
// within each row. The sums then have the order of the row, so the bits are those of sparse_linear. The
// calling thread has scratch [N, width] for `width` columns at a time. If threads wrote to `out` itself, they
// would prefetch each other's columns.
template <class Isa, class T, class W, class I>
void sparse_linear_by_feature(const SparseLinear<T, W, I>& p, const FeatureOrder& order, T* out, int64_t N,
                              int64_t column_begin, int64_t column_end, T* scratch, int64_t width);

// grad_values[p] += sum_{r, m} G[n, r, m] * W[r, indices[p], m]  (a sampled dense-dense product).
template <class Isa, class T, class W, class I>
void sparse_linear_grad_values(const SparseLinear<T, W, I>& p, const T* grad, T* grad_values,
                               int64_t row_begin, int64_t row_end);

// Weight gradient of features[u] in one repetition: grad_row[m] = sum_e values[positions[e]] G[documents[e],
// r, m] over its entries e. grad_r points to G[0, r, 0], its rows are grad_stride apart.
template <class Isa, class T>
void sparse_linear_grad_row(const T* values, const FeatureOrder& order, int64_t u, const T* grad_r,
                            int64_t grad_stride, T* grad_row, int64_t M);

}  // namespace mach
