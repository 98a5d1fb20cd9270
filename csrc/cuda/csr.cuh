// Sparse index structure on the GPU: what every kernel over CSR documents reads, and the pieces of
// feature_order.
// A check on the host would wait for the device, so nothing is checked there. Kernels therefore do not trust
// an index array. They clamp bounds when they read them, and compare indices with the range before they use
// them as addresses.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace mach {

// int32 or int64, known at run time only: one predicate a load, in place of twice as many kernels.
struct IndexArray {
  const void* data;
  bool wide;

  __device__ int64_t operator[](int64_t i) const {
    return wide ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
  }
};

// CSR rows within [0, nnz], whatever indptr holds. (The CPU forces all of indptr to be monotone; here each
// row is taken by itself. The two differ for faulty input alone.)
struct Rows {
  IndexArray indptr;  // [N + 1]
  int64_t N, nnz;

  __device__ int64_t begin(int64_t n) const { return clamp(indptr[n], 0); }
  __device__ int64_t end(int64_t n) const { return clamp(indptr[n + 1], begin(n)); }

  // Row of a position; -1 where there is none. log2 N loads.
  __device__ int64_t row_of(int64_t position) const {
    int64_t low = 0, high = N;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      if (indptr[middle] <= position)
        low = middle;
      else
        high = middle;
    }
    return N > 0 && begin(low) <= position && position < end(low) ? low : -1;
  }

 private:
  __device__ int64_t clamp(int64_t x, int64_t least) const { return x < least ? least : x < nnz ? x : nnz; }
};

// Entries by feature, as FeatureOrder of cpu/sparse_linear.h. If `counts` is null, U and E are the sizes.
// Otherwise the sizes are counts[0] and counts[1] on the device, and the arrays have the largest possible
// length.
struct FeatureGroups {
  const int64_t* features;   // [U]
  const int64_t* offsets;    // [U + 1]
  const int64_t* positions;  // [E]
  const int64_t* documents;  // [E]
  int64_t U, E;
  const int64_t* counts;
};

// Grouping takes four steps, the second and a part of the third by PyTorch. First each entry gets a key.
// Entries to be dropped get the key `none`, which is larger than any other. Then the keys are sorted, stably.
// Then `heads` are 1 where a key differs from the key before, and they are summed up. The groups follow from
// these sums. `Key` is int32_t if it suffices, which halves the passes of a radix sort.

// keys, documents [nnz]: the feature and the row of each position, `none` where either is out of range.
template <class Key>
struct FeatureKeysParams {
  IndexArray indices;
  Rows rows;
  Key none;  // number of features
  Key* keys;
  int64_t* documents;
};
template <class Key>
cudaError_t launch_feature_keys(const FeatureKeysParams<Key>& params, cudaStream_t stream);

template <class Key>
struct GroupHeadsParams {
  const Key* keys;  // [count], sorted
  int64_t count;
  Key none;
  int64_t* heads;  // [count]
};
template <class Key>
cudaError_t launch_group_heads(const GroupHeadsParams<Key>& params, cudaStream_t stream);

template <class Key>
struct GroupWriteParams {
  const Key* keys;          // [count], sorted
  const int64_t* entries;   // [count] where each came from
  const int64_t* ranks;     // [count] running sum of heads
  const int64_t* document;  // [count] of each entry, before the sort
  int64_t count;            // > 0
  Key none;
  int64_t* features;   // [count], U are written
  int64_t* offsets;    // [count + 1], U + 1 are written
  int64_t* positions;  // [count], E are written
  int64_t* documents;  // [count], E are written
  int64_t* counts;     // [2]: U, E
};
template <class Key>
cudaError_t launch_group_write(const GroupWriteParams<Key>& params, cudaStream_t stream);

}  // namespace mach
