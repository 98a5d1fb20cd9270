#include <algorithm>

#include "merge_parts.cuh"
#include "select.cuh"

namespace mach {
namespace {

constexpr int kEach = 4;  // labels of a thread between two looks at how many are held
constexpr int kTile = kEach * kSelectThreads;
constexpr int kRoom = 2 * kTile;
static_assert(kTile >= kMaxPartsK, "the first k and a tile more must find room");

struct PartsShared {
  SelectShared<float> select;
  uint32_t ranks[kRoom], labels[kRoom];  // in any order
  uint32_t held;
  uint32_t least;                      // rank of the first k so far
  uint32_t documents[kSelectThreads];  // that have no candidates
};

// Lists those of kSelectThreads documents that have no candidates, in order, and returns how many.
__device__ uint32_t list_documents(PartsShared& shared, const MergeInput<float>& m, int64_t k,
                                   const Candidates& candidates, int64_t begin) {
  const int64_t n = begin + threadIdx.x;
  const bool without = n < m.N && !candidates.complete(n, k);
  const unsigned mask = __ballot_sync(kAllLanes, without);
  if (lane_id() == 0) shared.select.warp_sums[warp_id()] = static_cast<uint32_t>(__popc(mask));
  __syncthreads();
  uint32_t before = static_cast<uint32_t>(__popc(mask & ((1u << lane_id()) - 1))), count = 0;
  for (int i = 0; i < kSelectThreads / kWarp; ++i) {
    if (i < warp_id()) before += shared.select.warp_sums[i];
    count += shared.select.warp_sums[i];
  }
  if (without) shared.documents[before] = static_cast<uint32_t>(n);
  __syncthreads();
  return count;
}

// Of those held, only the first k stay: rank descending, then label ascending.
__device__ void keep_first(PartsShared& shared, uint32_t k, uint32_t label_end) {
  const uint32_t held = shared.held;
  const auto visit = [&](const auto& f) {
    for (uint32_t begin = 0; begin < held; begin += kSelectThreads) {
      const uint32_t i = begin + threadIdx.x;
      f(i < held, i < held ? shared.ranks[i] : 0, i < held ? shared.labels[i] : 0);
    }
  };
  const Selection<float> chosen = block_select(shared.select, k, held, label_end, visit);
  uint32_t ranks[kRoom / kSelectThreads], labels[kRoom / kSelectThreads];
#pragma unroll
  for (int j = 0; j < kRoom / kSelectThreads; ++j) {
    const uint32_t i = j * kSelectThreads + threadIdx.x;
    ranks[j] = i < held ? shared.ranks[i] : 0;
    labels[j] = i < held ? shared.labels[i] : 0;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    shared.held = 0;
    shared.least = 0xffffffffu;
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kRoom / kSelectThreads; ++j) {
    if (j * kSelectThreads + threadIdx.x >= held || !chosen.takes(ranks[j], labels[j])) continue;
    const uint32_t at = atomicAdd(&shared.held, 1u);
    shared.ranks[at] = ranks[j];
    shared.labels[at] = labels[j];
    atomicMin(&shared.least, ranks[j]);
  }
  __syncthreads();
}

// The first k of labels [begin, end) of a document, at least k of them. Labels are looked at in ascending
// order: once k are held, one with the least rank of these comes after them all.
__device__ void first_of_part(PartsShared& shared, const MergeInput<float>& m, int64_t n, uint32_t k,
                              int64_t begin, int64_t end) {
  if (threadIdx.x == 0) shared.held = 0;
  bool full = false;
  __syncthreads();
  for (int64_t tile = begin; tile < end; tile += kTile) {
#pragma unroll 1
    for (int i = 0; i < kEach; ++i) {
      const int64_t label = tile + i * kSelectThreads + threadIdx.x;
      const uint32_t rank = label < end ? rank_of(merge_key(m, n, label)) : 0;
      const bool takes = label < end && (!full || rank > shared.least);
      const unsigned mask = __ballot_sync(kAllLanes, takes);
      if (mask == 0) continue;
      uint32_t at = 0;
      if (lane_id() == 0) at = atomicAdd(&shared.held, static_cast<uint32_t>(__popc(mask)));
      at = __shfl_sync(kAllLanes, at, 0) + __popc(mask & ((1u << lane_id()) - 1));
      if (!takes) continue;
      shared.ranks[at] = rank;
      shared.labels[at] = static_cast<uint32_t>(label);
    }
    __syncthreads();
    const uint32_t held = shared.held;
    __syncthreads();  // before the next tile adds to it
    if (held > (tile + kTile < end ? kRoom - kTile : k)) {
      keep_first(shared, k, static_cast<uint32_t>(m.L));
      full = true;
    }
  }
}

// Blocks that share a document where there are `documents` of them: as many as there are, as long as a part
// is a tile at least and the first k of all parts find room.
__device__ inline int64_t parts_of(const MergeInput<float>& m, int64_t k, int64_t capacity,
                                   int64_t documents) {
  const int64_t least = k > kTile ? k : kTile;
  int64_t parts = gridDim.x / documents;
  parts = parts < m.L / least ? parts : m.L / least;
  parts = parts < capacity / k ? parts : capacity / k;
  return parts > 1 ? parts : 1;
}

__global__ void __launch_bounds__(kSelectThreads, 2)
    parts_kernel(const MergeInput<float> m, uint32_t k, const Candidates candidates) {
  auto& shared = *dynamic_shared<PartsShared>();
  for (int64_t begin = 0; begin < m.N; begin += kSelectThreads) {
    const int64_t documents = list_documents(shared, m, k, candidates, begin);
    if (documents == 0) continue;
    const int64_t parts = parts_of(m, k, candidates.capacity, documents);
    for (int64_t item = blockIdx.x; item < documents * parts; item += gridDim.x) {
      const int64_t n = shared.documents[item / parts], part = item % parts;
      first_of_part(shared, m, n, k, m.L * part / parts, m.L * (part + 1) / parts);
      int32_t* labels = candidates.labels + n * candidates.capacity + part * k;
      for (uint32_t i = threadIdx.x; i < k; i += kSelectThreads)
        labels[i] = static_cast<int32_t>(shared.labels[i]);
      if (part == 0 && threadIdx.x == 0) candidates.gathered[n] = static_cast<uint32_t>(parts * k);
      __syncthreads();  // before the next part's shared memory
    }
    __syncthreads();  // before the next list
  }
}

}  // namespace

cudaError_t launch_merge_parts(const MergeInput<float>& merge, int64_t k, const Candidates& candidates,
                               cudaStream_t stream) {
  const int64_t useful = merge.N * std::max<int64_t>(1, merge.L / kTile);
  return MACH_LAUNCH(parts_kernel, static_cast<unsigned>(std::min(kBlocks, useful)), kSelectThreads,
                     sizeof(PartsShared), stream, merge, static_cast<uint32_t>(k), candidates);
}

}  // namespace mach
