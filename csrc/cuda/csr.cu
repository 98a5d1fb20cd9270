#include "csr.cuh"
#include "device.cuh"

namespace mach {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 16;  // beyond that a block takes several strides

unsigned blocks_for(int64_t count) {
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks);
}

__device__ int64_t first_index() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ int64_t stride() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

template <class Key>
__global__ void __launch_bounds__(kThreads) feature_keys_kernel(const FeatureKeysParams<Key> p) {
  for (int64_t i = first_index(); i < p.rows.nnz; i += stride()) {
    const int64_t feature = p.indices[i], row = p.rows.row_of(i);
    const bool known = row >= 0 && feature >= 0 && feature < static_cast<int64_t>(p.none);
    p.keys[i] = known ? static_cast<Key>(feature) : p.none;
    p.documents[i] = row;
  }
}

template <class Key>
__global__ void __launch_bounds__(kThreads) group_heads_kernel(const GroupHeadsParams<Key> p) {
  for (int64_t i = first_index(); i < p.count; i += stride())
    p.heads[i] = p.keys[i] != p.none && (i == 0 || p.keys[i] != p.keys[i - 1]);
}

template <class Key>
__global__ void __launch_bounds__(kThreads) group_write_kernel(const GroupWriteParams<Key> p) {
  for (int64_t i = first_index(); i < p.count; i += stride()) {
    const Key key = p.keys[i];
    const bool kept = key != p.none;
    if (kept) {
      if (i == 0 || key != p.keys[i - 1]) {
        p.features[p.ranks[i] - 1] = static_cast<int64_t>(key);
        p.offsets[p.ranks[i] - 1] = i;
      }
      p.positions[i] = p.entries[i];
      p.documents[i] = p.document[p.entries[i]];
    }
    // The last entry kept, or the first of all where none is.
    if (kept ? i + 1 == p.count || p.keys[i + 1] == p.none : i == 0) {
      const int64_t U = p.ranks[i], E = kept ? i + 1 : 0;
      p.offsets[U] = E;
      p.counts[0] = U;
      p.counts[1] = E;
    }
  }
}

}  // namespace

template <class Key>
cudaError_t launch_feature_keys(const FeatureKeysParams<Key>& params, cudaStream_t stream) {
  if (params.rows.nnz == 0) return cudaSuccess;
  return MACH_LAUNCH(feature_keys_kernel<Key>, blocks_for(params.rows.nnz), kThreads, 0, stream, params);
}

template <class Key>
cudaError_t launch_group_heads(const GroupHeadsParams<Key>& params, cudaStream_t stream) {
  if (params.count == 0) return cudaSuccess;
  return MACH_LAUNCH(group_heads_kernel<Key>, blocks_for(params.count), kThreads, 0, stream, params);
}

template <class Key>
cudaError_t launch_group_write(const GroupWriteParams<Key>& params, cudaStream_t stream) {
  return MACH_LAUNCH(group_write_kernel<Key>, blocks_for(params.count), kThreads, 0, stream, params);
}

#define MACH_GROUPS(KEY)                                                                 \
  template cudaError_t launch_feature_keys(const FeatureKeysParams<KEY>&, cudaStream_t); \
  template cudaError_t launch_group_heads(const GroupHeadsParams<KEY>&, cudaStream_t);   \
  template cudaError_t launch_group_write(const GroupWriteParams<KEY>&, cudaStream_t);
MACH_GROUPS(int32_t)
MACH_GROUPS(int64_t)

}  // namespace mach
