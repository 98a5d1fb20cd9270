#include <algorithm>

#include "merge_topk.cuh"
#include "select.cuh"

namespace mach {
namespace {

// A document that several blocks share.
template <class T>
struct SharedDocument {
  uint32_t bins[kBins];
  uint32_t arrived;  // blocks, in this pass
  uint32_t taken;    // labels
  Selection<T> selection;
};

// Adds a block's bins to the document's. True for the last block to come, which gets the sums.
template <class T>
__device__ bool add_bins(SelectShared<T>& shared, SharedDocument<T>& d, int blocks) {
  for (int i = threadIdx.x; i < kBins; i += kSelectThreads)
    if (shared.bins[i]) atomicAdd(&d.bins[i], shared.bins[i]);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) shared.counter = atomicAdd(&d.arrived, 1u);
  __syncthreads();
  if (shared.counter != static_cast<uint32_t>(blocks) - 1) return false;
  __threadfence();
  for (int i = threadIdx.x; i < kBins; i += kSelectThreads) shared.bins[i] = atomicExch(&d.bins[i], 0u);
  if (threadIdx.x == 0) d.arrived = 0;
  __syncthreads();
  return true;
}

// Sorts `count` pairs in shared memory, with room for `size`, the next power of two, and writes the first k.
template <class T>
__device__ void order_labels(const MergeTopKParams<T>& p, int64_t n, int count, int size, Rank<T>* ranks,
                             uint32_t* labels) {
  for (int i = count + threadIdx.x; i < size; i += kSelectThreads) {  // after all others
    ranks[i] = 0;
    labels[i] = 0xffffffffu;
  }
  for (int run = 2; run <= size; run *= 2)  // bitonic
    for (int step = run / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int i = threadIdx.x; i < size / 2; i += kSelectThreads) {
        const int a = 2 * i - (i & (step - 1)), b = a + step;
        const bool a_first = ranks[a] > ranks[b] || (ranks[a] == ranks[b] && labels[a] < labels[b]);
        if (a_first != ((a & run) == 0)) {
          const Rank<T> rank = ranks[a];
          const uint32_t label = labels[a];
          ranks[a] = ranks[b];
          labels[a] = labels[b];
          ranks[b] = rank;
          labels[b] = label;
        }
      }
    }
  __syncthreads();
  for (int i = threadIdx.x; i < p.k; i += kSelectThreads) {
    T key = key_of(ranks[i]);
    if (key == 0 || key != key) key = merge_key(p.merge, n, labels[i]);  // the sign of -0, NaN's bits
    p.values[n * p.k + i] = key;
    p.labels[n * p.k + i] = labels[i];
  }
}

__host__ __device__ inline int power_of_two(int64_t count) {
  int size = 1;
  while (size < count) size *= 2;
  return size;
}

constexpr int kSorted = 512;  // up to so many candidates are put in order without a selection

// Passes [first, last) of the documents' selections; the pass after the last takes the labels, and where
// `ordered` puts them in order.
template <class T>
__global__ void __launch_bounds__(kSelectThreads, sizeof(T) == 4 ? 2 : 1)
    merge_topk_kernel(const MergeTopKParams<T> p, int first, int last, bool ordered) {
  auto& shared = *dynamic_shared<SelectShared<T>>();
  auto* sorted_ranks = reinterpret_cast<Rank<T>*>(&shared + 1);
  const int blocks = p.blocks, lane = lane_id();
  const int64_t L = p.merge.L, share = blockIdx.x % blocks;
  const uint32_t k = static_cast<uint32_t>(p.k);
  for (int64_t n = blockIdx.x / blocks; n < p.merge.N; n += gridDim.x / blocks) {
    const bool few = p.candidates.labels;
    const int64_t count = few ? p.candidates.count(n, p.k) : L;
    const int32_t* labels = p.candidates.labels + n * p.candidates.capacity;
    uint32_t* ranks = p.candidates.ranks + n * p.candidates.capacity;
    if (few) {
      for (int64_t i = threadIdx.x; i < count; i += kSelectThreads)
        ranks[i] = static_cast<uint32_t>(rank_of(merge_key(p.merge, n, labels[i])));
      __syncthreads();
    }
    const auto visit = [&](const auto& f) {
      for (int64_t begin = share * kSelectThreads; begin < count; begin += blocks * kSelectThreads) {
        const int64_t i = begin + threadIdx.x;
        const bool some = i < count;
        if (few)
          f(some, some ? ranks[i] : 0, some ? static_cast<uint32_t>(labels[i]) : 0);
        else
          f(some, some ? rank_of(merge_key(p.merge, n, i)) : 0, static_cast<uint32_t>(i));
      }
    };
    // Few enough are taken as they are, and put in order.
    const uint32_t wanted = few && ordered && count <= kSorted ? static_cast<uint32_t>(count) : k;
    auto* document = blocks > 1 ? static_cast<SharedDocument<T>*>(p.shared) + n : nullptr;
    Selection<T> s = first == 0 ? select_from<T>(wanted, static_cast<uint32_t>(count)) : document->selection;
    if (blocks > 1 && first == 0 && s.done && share == 0 && threadIdx.x == 0) document->selection = s;
    for (int pass = first; pass < last && pass < kPasses<T> && !s.done; ++pass) {
      // Digits that are 0 in all labels.
      if (pass >= kRankPasses<T> && pass + 1 < kPasses<T> && (L - 1) >> digit_shift<T>(pass) == 0) continue;
      count_digits(shared, s, pass, visit);
      if (blocks > 1 && !add_bins(shared, *document, blocks)) break;
      choose_bin(shared, s, pass);
      if (blocks > 1 && threadIdx.x == 0) document->selection = s;
    }
    if (last <= kPasses<T>) continue;
    if (threadIdx.x == 0) shared.counter = 0;
    __syncthreads();
    uint32_t* taken = blocks > 1 ? &document->taken : &shared.counter;
    const int size = power_of_two(wanted);
    auto* sorted_labels = reinterpret_cast<uint32_t*>(sorted_ranks + size);
    visit([&](bool some, Rank<T> rank, uint32_t label) {
      const bool takes = some && s.takes(rank, label);
      const unsigned mask = __ballot_sync(kAllLanes, takes);
      if (mask == 0) return;
      uint32_t at = 0;
      if (lane == 0) at = atomicAdd(taken, static_cast<uint32_t>(__popc(mask)));
      at = __shfl_sync(kAllLanes, at, 0) + __popc(mask & ((1u << lane) - 1));
      if (!takes || at >= wanted) return;
      if (ordered) {
        sorted_ranks[at] = rank;
        sorted_labels[at] = label;
      } else {
        p.labels[n * p.k + at] = label;
      }
    });
    __syncthreads();
    if (ordered) order_labels(p, n, static_cast<int>(wanted), size, sorted_ranks, sorted_labels);
    if (p.trace && share == 0 && threadIdx.x == 0) {
      const int32_t* work = p.candidates.work + n * kTraceColumns;
      int64_t* row = p.trace + n * kTraceColumns;
      const bool found = few && p.candidates.complete(n, p.k);
      row[0] = found ? work[0] : 0;
      row[1] = found ? work[1] : 0;
      row[2] = found ? work[2] + count : L;
    }
    __syncthreads();  // before the next document's shared memory
  }
}

// Of documents that several blocks took the labels of.
template <class T>
__global__ void __launch_bounds__(kSelectThreads, 1) order_kernel(const MergeTopKParams<T> p) {
  const int k = static_cast<int>(p.k), size = power_of_two(k);
  auto* ranks = dynamic_shared<Rank<T>>();
  auto* labels = reinterpret_cast<uint32_t*>(ranks + size);
  for (int64_t n = blockIdx.x; n < p.merge.N; n += gridDim.x) {
    for (int i = threadIdx.x; i < k; i += kSelectThreads) {
      labels[i] = static_cast<uint32_t>(p.labels[n * k + i]);
      ranks[i] = rank_of(merge_key(p.merge, n, labels[i]));
    }
    __syncthreads();
    order_labels(p, n, k, size, ranks, labels);
    __syncthreads();
  }
}

}  // namespace

int blocks_per_document(int64_t N, int64_t L) {
  const int64_t useful = (L + 8 * kSelectThreads - 1) / (8 * kSelectThreads);
  return static_cast<int>(std::max<int64_t>(1, std::min(useful, kBlocks / std::max<int64_t>(1, N))));
}

int64_t shared_bytes(int64_t N) { return N * static_cast<int64_t>(sizeof(SharedDocument<double>)); }

template <class T>
cudaError_t launch_merge_topk(const MergeTopKParams<T>& params, cudaStream_t stream) {
  const auto documents = static_cast<unsigned>(std::min<int64_t>(params.merge.N, 1 << 16));
  const bool ordered = params.k <= kMaxOrdered;
  const auto sorted_bytes = [](int64_t count) {
    return power_of_two(count) * (sizeof(Rank<T>) + sizeof(uint32_t));
  };
  if (params.blocks == 1) {
    const int64_t sorted = params.candidates.labels ? std::max<int64_t>(params.k, kSorted) : params.k;
    return MACH_LAUNCH((merge_topk_kernel<T>), documents, kSelectThreads,
                       sizeof(SelectShared<T>) + (ordered ? sorted_bytes(sorted) : 0), stream, params, 0,
                       kPasses<T> + 1, ordered);
  }
  for (int pass = 0; pass <= kPasses<T>; ++pass) {
    const cudaError_t error = MACH_LAUNCH((merge_topk_kernel<T>), documents * params.blocks, kSelectThreads,
                                          sizeof(SelectShared<T>), stream, params, pass, pass + 1, false);
    if (error != cudaSuccess) return error;
  }
  if (!ordered) return cudaSuccess;
  return MACH_LAUNCH((order_kernel<T>), documents, kSelectThreads, sorted_bytes(params.k), stream, params);
}

template cudaError_t launch_merge_topk(const MergeTopKParams<float>&, cudaStream_t);
template cudaError_t launch_merge_topk(const MergeTopKParams<double>&, cudaStream_t);

}  // namespace mach
