// Floor: 7 passes over the U rows for Adam (four read, three written), 5 for Adagrad: 28 and 20 bytes an
// element of float32.
#include "columns.cuh"
#include "device.cuh"
#include "sparse_optim.cuh"

namespace mach {
namespace {

constexpr int kWarps = 8, kWidth = 4, kTile = 32 * kWidth;

// One warp a (row, tile of columns).
template <class T, bool kAligned>
__global__ void __launch_bounds__(32 * kWarps) sparse_optim_kernel(const RowStepParams<T> p, int64_t tiles) {
  const int64_t warps = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t task = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; task < p.U * tiles;
       task += warps) {
    const int64_t u = task / tiles, first = (task - u * tiles) * kTile, row = p.rows ? p.rows[u] : u;
    if (row < 0 || row >= p.P) continue;
    const Lane<kWidth, kAligned> lane(first, p.M);
    const int64_t at = row * p.M + first;
    const bool has_second = p.step.optimizer == Optimizer::adam;
    T g[kWidth], x[kWidth], m[kWidth], v[kWidth] = {};
    load_columns(p.gradient + u * p.M + first, lane, g);
    load_columns(p.parameter + at, lane, x);
    load_columns(p.step.first + at, lane, m);
    if (has_second) load_columns(p.step.second + at, lane, v);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) step_element(p.step, g[i], x[i], m[i], v[i]);
    store_columns(p.parameter + at, lane, x);
    store_columns(p.step.first + at, lane, m);
    if (has_second) store_columns(p.step.second + at, lane, v);
  }
}

}  // namespace

template <class T>
cudaError_t launch_sparse_optim(const RowStepParams<T>& params, cudaStream_t stream) {
  if (params.U * params.M == 0) return cudaSuccess;
  RowStepParams<T> p = params;
  if (!p.rows) {  // one long row: no end of a row within it
    p.M *= p.P;
    p.P = p.U = 1;
  }
  const int64_t tiles = (p.M + kTile - 1) / kTile, blocks = (p.U * tiles + kWarps - 1) / kWarps;
  const auto grid = static_cast<unsigned>(blocks < (1 << 20) ? blocks : 1 << 20);
  if constexpr (sizeof(T) == 4) {
    if (p.M % kWidth == 0 && is_aligned(p.parameter) && is_aligned(p.gradient) && is_aligned(p.step.first) &&
        is_aligned(p.step.second))
      return MACH_LAUNCH((sparse_optim_kernel<T, true>), grid, 32 * kWarps, 0, stream, p, tiles);
  }
  return MACH_LAUNCH((sparse_optim_kernel<T, false>), grid, 32 * kWarps, 0, stream, p, tiles);
}

template cudaError_t launch_sparse_optim(const RowStepParams<float>&, cudaStream_t);
template cudaError_t launch_sparse_optim(const RowStepParams<double>&, cudaStream_t);

}  // namespace mach
