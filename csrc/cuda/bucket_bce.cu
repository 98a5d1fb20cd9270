// Floor: 8 bytes a logit of float32, read and written once; a chunk [256, 20000] that a matrix product has
// just written is in L2. The arithmetic, about 60 instructions a logit, takes as long: 10 us for that chunk.
#include "../cpu/numeric.h"
#include "bucket_bce.cuh"
#include "columns.cuh"
#include "device.cuh"

namespace mach {
namespace {

struct Gpu {};  // for numeric.h, an instruction set

constexpr int kMostThreads = 512;
constexpr int64_t kChunk = 1 << 16;  // buckets whose bits are in shared memory at one time

// One block a document, thread t of T the buckets 4 t, ..., 4 t + 3, 4 (t + T), ...
template <class T>
__global__ void __launch_bounds__(kMostThreads) bucket_bce_kernel(const BucketBceParams<T> p) {
  double* partial = dynamic_shared<double>();                      // [warps]
  unsigned* positive = reinterpret_cast<unsigned*>(partial + 16);  // bit b: bucket b of the chunk
  const int64_t n = blockIdx.x, begin = p.labels.begin(n), end = p.labels.end(n);
  T* z = p.logits + n * p.logits_stride;
  const bool aligned = sizeof(T) == 4 && is_aligned(z);
  double sum = 0;
  for (int64_t first = 0; first < p.B; first += kChunk) {
    const int64_t last = first + kChunk < p.B ? first + kChunk : p.B;
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < (last - first + 31) / 32; i += blockDim.x)
      positive[i] = 0;
    __syncthreads();
    for (int64_t e = begin + threadIdx.x; e < end; e += blockDim.x) {
      const int64_t label = p.label_indices[e];
      const auto bucket = static_cast<uint32_t>(label >= 0 && label < p.L ? p.buckets[label] : -1);
      if (bucket >= static_cast<uint32_t>(p.B)) {
        sum = __longlong_as_double(0x7FF8000000000000);  // NaN
        continue;
      }
      const uint32_t b = bucket - static_cast<uint32_t>(first);
      if (b < static_cast<uint32_t>(last - first)) atomicOr(&positive[b / 32], 1u << (b % 32));
    }
    __syncthreads();
    for (int64_t b = first + 4 * static_cast<int64_t>(threadIdx.x); b < last; b += 4 * blockDim.x) {
      const unsigned bits = positive[(b - first) / 32] >> (b % 32);
      const int count = last - b < 4 ? static_cast<int>(last - b) : 4;
      T x[4] = {}, term[4] = {};
      const bool whole = aligned && count == 4;
      if (whole) {
        const float4 v = *reinterpret_cast<const float4*>(z + b);
        x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (i < count) x[i] = z[b + i];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i >= count) continue;
        // For a positive, softplus(-z) is softplus(z) - z, -sigmoid(-z) is sigmoid(z) - 1: no cancellation.
        const bool wanted = bits >> i & 1;
        T sigmoid;
        logistic<Gpu>(wanted ? -x[i] : x[i], term[i], sigmoid);
        x[i] = (wanted ? -p.scale : p.scale) * sigmoid;
      }
      sum += static_cast<double>((term[0] + term[1]) + (term[2] + term[3]));
      if (!p.gradient) continue;
      if (whole) {
        *reinterpret_cast<float4*>(z + b) = make_float4(x[0], x[1], x[2], x[3]);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (i < count) z[b + i] = x[i];
      }
    }
  }
  sum = warp_sum(sum);
  if (lane_id() == 0) partial[warp_id()] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    double total = 0;
    for (int w = 0; w < static_cast<int>(blockDim.x) / kWarp; ++w) total += partial[w];
    p.loss[n] = total;
  }
}

}  // namespace

template <class T>
cudaError_t launch_bucket_bce(const BucketBceParams<T>& p, cudaStream_t stream) {
  if (p.labels.N == 0) return cudaSuccess;
  const int64_t wanted = ((p.B + 3) / 4 + kWarp - 1) / kWarp * kWarp;
  const auto threads = static_cast<unsigned>(wanted < kWarp          ? kWarp
                                             : wanted < kMostThreads ? wanted
                                                                     : kMostThreads);
  const int64_t bits = p.B < kChunk ? p.B : kChunk;
  const size_t shared = kMostThreads / kWarp * sizeof(double) + (bits + 31) / 32 * sizeof(unsigned);
  return MACH_LAUNCH(bucket_bce_kernel<T>, grid_extent(p.labels.N), threads, shared, stream, p);
}

template cudaError_t launch_bucket_bce(const BucketBceParams<float>&, cudaStream_t);
template cudaError_t launch_bucket_bce(const BucketBceParams<double>&, cudaStream_t);

}  // namespace mach
