#include "merge_key.cuh"
#include "merge_scores.cuh"

namespace mach {
namespace {

// Whether the label and all of its buckets are there.
template <class T>
__device__ bool is_known(const MergeInput<T>& p, int64_t label) {
  if (label < 0 || label >= p.L) return false;
  bool known = true;
#pragma unroll 4
  for (int64_t r = 0; r < p.R; ++r)
    known = known && static_cast<uint32_t>(p.buckets[r * p.L + label]) < static_cast<uint32_t>(p.B);
  return known;
}

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;  // beyond that a block takes several strides

unsigned blocks_for(int64_t threads) {
  const int64_t blocks = (threads + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

// One thread a label asked for: R buckets, then R scores, far apart.
template <class T>
__global__ void __launch_bounds__(kThreads) merge_scores_kernel(const MergeScoresParams<T> p) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < p.merge.N * p.m;
       i += stride) {
    const int64_t label = p.labels[i];
    const bool known = label >= 0 && label < p.merge.L;
    const T key = known ? merge_key(p.merge, i / p.m, label) : static_cast<T>(__int_as_float(0x7fc00000));
    if (p.out)
      p.out[i] = key;
    else  // the sign bit turned: unsigned order becomes signed order
      p.ranks[i] =
          static_cast<int64_t>(rank_of(key)) ^ (sizeof(T) == 8 ? INT64_MIN : static_cast<int64_t>(0));
  }
}

// The one or two repetitions that a label's key comes from, where the merge is min or median: the lowest r
// among equals; of a NaN key, the first NaN. 0 for the mean. -1: a label that is not there, or not all of its
// buckets.
template <class T>
__global__ void __launch_bounds__(kThreads) choose_kernel(const MergeScoresGradParams<T> p) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  const int R = static_cast<int>(p.merge.R);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < p.merge.N * p.m;
       i += stride) {
    const int64_t label = p.labels[i];
    int2 chosen = make_int2(-1, -1);
    const bool known = is_known(p.merge, label);
    if (known && p.merge.merge == Merge::mean) {
      chosen = make_int2(0, 0);
    } else if (known) {
      const LabelScores<T> s = label_scores(p.merge, i / p.m, label);
      const int upper = p.merge.merge == Merge::min ? 0 : R / 2;
      const int lower = p.merge.merge == Merge::min || R % 2 ? upper : upper - 1;
      for (int r = 0; r < R; ++r) {
        const T x = s[r];
        if (x != x) {
          chosen = make_int2(r, r);
          break;
        }
        int place = 0;
        for (int q = 0; q < R; ++q) {
          const T y = s[q];
          place += q < r ? y <= x : y < x;
        }
        if (place == lower) chosen.x = r;
        if (place == upper) chosen.y = r;
      }
    }
    p.chosen[i] = chosen;
  }
}

// One warp a (document, repetition): 32 labels at a time, those of one bucket added in their order by one
// lane. So every sum is taken in the order of the labels, as on the CPU, without atomics.
template <class T>
__global__ void __launch_bounds__(kThreads) merge_scores_grad_kernel(const MergeScoresGradParams<T> p) {
  const int lane = lane_id();
  const int64_t R = p.merge.R, warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + warp_id(); row < p.merge.N * R;
       row += warps) {
    const int64_t n = row / R, r = row - n * R;
    T* sums = p.grad_scores + row * p.merge.B;
    for (int64_t first = 0; first < p.m; first += kWarp) {
      const int64_t i = n * p.m + first + lane;
      int bucket = -1;
      T share = 0;
      if (first + lane < p.m) {
        const int64_t label = p.labels[i];
        const int2 chosen = p.chosen[i];
        bool given = chosen.x == r || chosen.y == r;
        if (p.merge.merge == Merge::mean) {
          given = chosen.x == 0;
          share = p.grad[i] / static_cast<T>(R);
        } else {
          share = chosen.x == chosen.y ? p.grad[i] : p.grad[i] / T(2);
        }
        if (given) bucket = p.merge.buckets[r * p.merge.L + label];
      }
      const unsigned same = __match_any_sync(kAllLanes, bucket);
      const bool adds = bucket >= 0 && lane == __ffs(same) - 1;
      T sum = adds ? sums[bucket] : T(0);
      unsigned left = bucket >= 0 ? same : 0;
      while (__any_sync(kAllLanes, left != 0)) {  // mostly once
        const T next = __shfl_sync(kAllLanes, share, left ? __ffs(left) - 1 : lane);
        if (left) sum += next;
        left &= left - 1;
      }
      if (adds) sums[bucket] = sum;
      __syncwarp();  // the next labels' sums may be another lane's to read
    }
  }
}

}  // namespace

template <class T>
cudaError_t launch_merge_scores(const MergeScoresParams<T>& params, cudaStream_t stream) {
  const int64_t count = params.merge.N * params.m;
  if (count == 0) return cudaSuccess;
  return MACH_LAUNCH((merge_scores_kernel<T>), blocks_for(count), kThreads, 0, stream, params);
}

template <class T>
cudaError_t launch_merge_scores_grad(const MergeScoresGradParams<T>& params, cudaStream_t stream) {
  const int64_t count = params.merge.N * params.m;
  if (count == 0) return cudaSuccess;
  const cudaError_t error = MACH_LAUNCH((choose_kernel<T>), blocks_for(count), kThreads, 0, stream, params);
  if (error != cudaSuccess) return error;
  return MACH_LAUNCH((merge_scores_grad_kernel<T>), blocks_for(params.merge.N * params.merge.R * kWarp),
                     kThreads, 0, stream, params);
}

template cudaError_t launch_merge_scores(const MergeScoresParams<float>&, cudaStream_t);
template cudaError_t launch_merge_scores(const MergeScoresParams<double>&, cudaStream_t);
template cudaError_t launch_merge_scores_grad(const MergeScoresGradParams<float>&, cudaStream_t);
template cudaError_t launch_merge_scores_grad(const MergeScoresGradParams<double>&, cudaStream_t);

}  // namespace mach
