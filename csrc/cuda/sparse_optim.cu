#include "device.cuh"
#include "sparse_optim.cuh"

namespace mach {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;  // beyond that a block takes several strides

template <class T>
__global__ void __launch_bounds__(kThreads) sparse_adagrad_kernel(const SparseAdagradParams<T> p) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < p.U * p.M; i += stride) {
    const int64_t u = i / p.M;
    const int64_t row = p.rows ? p.rows[u] : u;
    if (row < 0 || row >= p.P) continue;
    const int64_t at = row * p.M + (i - u * p.M);
    const T g = p.gradient[i];
    const T s = p.sum[at] + g * g;
    p.sum[at] = s;
    p.parameter[at] -= p.lr * g / (sqrt(s) + p.eps);
  }
}

}  // namespace

template <class T>
cudaError_t launch_sparse_adagrad(const SparseAdagradParams<T>& params, cudaStream_t stream) {
  const int64_t blocks = (params.U * params.M + kThreads - 1) / kThreads;
  if (blocks == 0) return cudaSuccess;
  return MACH_LAUNCH(sparse_adagrad_kernel<T>,
                     static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks), kThreads, 0, stream,
                     params);
}

template cudaError_t launch_sparse_adagrad(const SparseAdagradParams<float>&, cudaStream_t);
template cudaError_t launch_sparse_adagrad(const SparseAdagradParams<double>&, cudaStream_t);

}  // namespace mach
