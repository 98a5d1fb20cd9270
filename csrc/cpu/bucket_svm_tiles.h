// Solves the tiles of bucket_svm, each by itself. A tile collects its positive documents, calls the solver
// (bucket_svm.h) and writes the solution. Plain code, compiled once.
#pragma once

#include <cstdint>

#include "bucket_svm.h"
#include "tasks.h"

namespace mach {

template <class T>
struct BucketSvmTiles {
  const T* values;
  const int32_t* indices;  // in [0, D), distinct in a document
  const int64_t* indptr;   // [N + 1]
  int64_t N, D, M;
  const int32_t* buckets;        // [L], this repetition's
  const int64_t* label_indices;  // in [0, L)
  const int64_t* label_indptr;   // [N + 1]
  int64_t first;                 // buckets [first, first + M)
  T C, tolerance;
  int64_t max_passes;
  const T* factor;  // [D + 1, D + 1] of svm_factor, or null
  T* weight;        // [D, M]
  int64_t weight_row, weight_column;
  T* bias;  // [M]
  int64_t bias_stride;
  int64_t* passes;     // [num_svm_tiles(M)]
  double* violations;  // [num_svm_tiles(M)]
};

constexpr int64_t num_svm_tiles(int64_t M) { return (M + kSvmTile - 1) / kSvmTile; }

template <class T>
void bucket_svm_tiles(const BucketSvmTiles<T>& p, const Tasks& run_tasks);

}  // namespace mach
