// Floor: a column of the weight is H elements B apart, 32 bytes of memory traffic for each, so 32 R H bytes
// for a label that no other document asks for; N * m * R * H * 32 / 4.3 TB/s in all: 39 us for N = 64, m =
// 10, R = 16, H = 512. Where many documents ask for the same label its columns come from L2.
#include "device.cuh"
#include "label_logits.cuh"

namespace mach {
namespace {

constexpr int kWarps = 8;
constexpr int64_t kMostBlocks = 1 << 20;  // beyond that a block takes several strides

// Bucket of the label at (n, j) in repetition r; -1 where the label, or what the table says, is out of range.
template <class P>
__device__ inline int64_t bucket_of(const P& p, int64_t n, int64_t j, int64_t r) {
  const int64_t label = p.labels[n * p.m + j];
  if (label < 0 || label >= p.L) return -1;
  const int64_t b = p.buckets[r * p.L + label];
  return b >= 0 && b < p.B ? b : -1;
}

// One warp a logit, its lanes over the hidden units. Documents run fastest, then labels: columns that
// documents share, or that hash together, are read at about the same time.
template <class T>
__global__ void __launch_bounds__(kWarp* kWarps)
    label_logits_kernel(const LabelLogitsParams<T> p, T* __restrict__ out) {
  const int64_t warps = static_cast<int64_t>(gridDim.x) * kWarps, count = p.N * p.m * p.R;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kWarps + warp_id(); i < count; i += warps) {
    const int64_t n = i % p.N, rest = i / p.N, j = rest % p.m, r = rest / p.m, b = bucket_of(p, n, j, r);
    T sum = 0;
    if (b >= 0) {
      const T* hidden = p.hidden + (p.shared ? n : n * p.R + r) * p.H;
      const T* column = p.weight + r * p.H * p.B + b;
#pragma unroll 4
      for (int64_t h = lane_id(); h < p.H; h += kWarp) sum += __ldg(hidden + h) * __ldg(column + h * p.B);
      sum = warp_sum(sum) + (p.bias ? p.bias[r * p.B + b] : T(0));
    } else {
      sum = static_cast<T>(__int_as_float(0x7FC00000));  // NaN
    }
    if (lane_id() == 0) out[(n * p.m + j) * p.R + r] = sum;
  }
}

// One block a row of hidden and kWarp of its units. The (repetition, label) pairs that add to the row are
// dealt to the warps, kWarp at a time: a lane finds out where the column of one pair is, then all read it.
// The sums of the warps are added in order.
template <class T>
__global__ void __launch_bounds__(kWarp* kWarps)
    label_logits_grad_hidden_kernel(const LabelLogitsParams<T> p, const T* __restrict__ grad,
                                    T* __restrict__ grad_hidden, int64_t tiles) {
  constexpr int kAtOnce = sizeof(T) == 4 ? 8 : 4;  // loads under way a lane
  T* partial = dynamic_shared<T>();                // [kWarps, kWarp]
  const int64_t row = blockIdx.x / tiles, h = (blockIdx.x - row * tiles) * kWarp + lane_id();
  const int64_t n = p.shared ? row : row / p.R, first_r = p.shared ? 0 : row - n * p.R;
  const int64_t pairs = p.shared ? p.R * p.m : p.m;
  T sum = 0;
  for (int64_t first = static_cast<int64_t>(warp_id()) * kWarp; first < pairs; first += kWarps * kWarp) {
    int64_t offset = -1;  // of the pair's column
    T g = 0;
    if (first + lane_id() < pairs) {
      const int64_t r = first_r + (first + lane_id()) / p.m, j = (first + lane_id()) % p.m;
      const int64_t b = bucket_of(p, n, j, r);
      g = grad[(n * p.m + j) * p.R + r];
      if (b >= 0) offset = r * p.H * p.B + b;
    }
    const int count = pairs - first < kWarp ? static_cast<int>(pairs - first) : kWarp;
    for (int begin = 0; begin < count; begin += kAtOnce) {
      T w[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int64_t column = __shfl_sync(kAllLanes, offset, begin + k);
        w[k] = column >= 0 && h < p.H ? __ldg(p.weight + column + h * p.B) : T(0);
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const bool known = __shfl_sync(kAllLanes, offset, begin + k) >= 0;
        const T value = __shfl_sync(kAllLanes, g, begin + k);
        if (known) sum += value * w[k];
      }
    }
  }
  partial[warp_id() * kWarp + lane_id()] = sum;
  __syncthreads();
  if (warp_id() == 0 && h < p.H) {
    T total = 0;
    for (int w = 0; w < kWarps; ++w) total += partial[w * kWarp + lane_id()];
    grad_hidden[row * p.H + h] = total;
  }
}

template <class Key>
__global__ void __launch_bounds__(kWarp* kWarps) label_keys_kernel(const LabelKeysParams<Key> p) {
  const int64_t count = p.N * p.m * p.R, stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    const int64_t r = i % p.R, at = i / p.R, n = at / p.m, b = bucket_of(p, n, at - n * p.m, r);
    p.keys[i] = static_cast<Key>(b < 0 ? p.R * p.B : r * p.B + b);
    p.documents[i] = p.shared ? n : n * p.R + r;
  }
}

unsigned blocks_for(int64_t count, int64_t in_a_block) {
  const int64_t blocks = (count + in_a_block - 1) / in_a_block;
  return static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks);
}

}  // namespace

template <class T>
cudaError_t launch_label_logits(const LabelLogitsParams<T>& p, T* out, cudaStream_t stream) {
  const int64_t count = p.N * p.m * p.R;
  if (count == 0) return cudaSuccess;
  return MACH_LAUNCH(label_logits_kernel<T>, blocks_for(count, kWarps), kWarp * kWarps, 0, stream, p, out);
}

template <class T>
cudaError_t launch_label_logits_grad_hidden(const LabelLogitsParams<T>& p, const T* grad, T* grad_hidden,
                                            cudaStream_t stream) {
  const int64_t tiles = (p.H + kWarp - 1) / kWarp, blocks = (p.shared ? p.N : p.N * p.R) * tiles;
  if (blocks == 0) return cudaSuccess;
  return MACH_LAUNCH(label_logits_grad_hidden_kernel<T>, grid_extent(blocks), kWarp * kWarps,
                     kWarps * kWarp * sizeof(T), stream, p, grad, grad_hidden, tiles);
}

template <class Key>
cudaError_t launch_label_keys(const LabelKeysParams<Key>& p, cudaStream_t stream) {
  const int64_t count = p.N * p.m * p.R;
  if (count == 0) return cudaSuccess;
  return MACH_LAUNCH(label_keys_kernel<Key>, blocks_for(count, kWarp * kWarps), kWarp * kWarps, 0, stream, p);
}

#define MACH_LABEL_LOGITS(T)                                                                      \
  template cudaError_t launch_label_logits(const LabelLogitsParams<T>&, T*, cudaStream_t);        \
  template cudaError_t launch_label_logits_grad_hidden(const LabelLogitsParams<T>&, const T*, T*, \
                                                       cudaStream_t);
MACH_LABEL_LOGITS(float)
MACH_LABEL_LOGITS(double)

template cudaError_t launch_label_keys(const LabelKeysParams<int32_t>&, cudaStream_t);
template cudaError_t launch_label_keys(const LabelKeysParams<int64_t>&, cudaStream_t);

}  // namespace mach
