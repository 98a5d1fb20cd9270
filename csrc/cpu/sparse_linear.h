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

template <class T, class W, class I>
struct SparseLinear {
  const T* values;        // [nnz]
  const I* indices;       // [nnz]
  const int64_t* indptr;  // [N + 1]
  const W* weight;        // [R, D, M]
  const T* bias;          // [R, M] or null
  int64_t R, D, M;
  bool relu;
};

// Documents [row_begin, row_end), columns [column_begin, column_end), all repetitions.
template <class Isa, class T, class W, class I>
void sparse_linear(const SparseLinear<T, W, I>& p, T* out, int64_t row_begin, int64_t row_end,
                   int64_t column_begin, int64_t column_end);

// grad_values[p] = sum_{r, m} G[n, r, m] * W[r, indices[p], m]  (a sampled dense-dense product).
template <class Isa, class T, class W, class I>
void sparse_linear_grad_values(const SparseLinear<T, W, I>& p, const T* grad, T* grad_values,
                               int64_t row_begin, int64_t row_end);

// Entries of one feature: documents row[e] with value values[position[e]], e in [begin, end).
// grad_row[m] = sum_e value * G[row, r, m].
template <class Isa, class T>
void sparse_linear_grad_row(const T* values, const int64_t* position, const int64_t* row, int64_t begin,
                            int64_t end, const T* grad_r, int64_t grad_stride, T* grad_row, int64_t M);

}  // namespace mach
