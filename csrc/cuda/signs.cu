// Floor: 8 bytes an entry of float32, read and written once; a tile [1024, 2048] that a matrix product has
// just written is in L2.
#include "device.cuh"
#include "signs.cuh"

namespace mach {
namespace {

constexpr int kThreads = 256;

// One block a row.
template <class T>
__global__ void __launch_bounds__(kThreads) signs_kernel(const SignsParams<T> p) {
  int64_t* partial = dynamic_shared<int64_t>();  // [warps]
  const int64_t n = blockIdx.x;
  T* __restrict__ g = p.gradient + n * p.stride;
  const T negative = p.nonnegative ? T(0) : T(1);
  int64_t count = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < p.columns; i += kThreads) {
    const T value = g[i], up = value > 0 ? T(1) : T(0), down = value < 0 ? negative : T(0);
    g[i] = up - down;
    count += up + down > 0 ? 1 : 0;
  }
  count = warp_sum(count);
  if (lane_id() == 0) partial[warp_id()] = count;
  __syncthreads();
  if (threadIdx.x == 0) {
    int64_t total = 0;
    for (int w = 0; w < kThreads / kWarp; ++w) total += partial[w];
    p.counts[n] = total;
  }
}

}  // namespace

template <class T>
cudaError_t launch_signs(const SignsParams<T>& p, cudaStream_t stream) {
  if (p.N == 0) return cudaSuccess;
  return MACH_LAUNCH(signs_kernel<T>, grid_extent(p.N), kThreads, kThreads / kWarp * sizeof(int64_t), stream,
                     p);
}

template cudaError_t launch_signs(const SignsParams<float>&, cudaStream_t);
template cudaError_t launch_signs(const SignsParams<double>&, cudaStream_t);

}  // namespace mach
