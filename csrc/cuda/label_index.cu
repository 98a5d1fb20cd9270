#include <algorithm>

#include "device.cuh"
#include "label_index.cuh"

namespace mach {
namespace {

constexpr int kThreads = 256;

unsigned blocks_for(int64_t threads) {
  return static_cast<unsigned>(std::min<int64_t>((threads + kThreads - 1) / kThreads, 1 << 16));
}

__global__ void __launch_bounds__(kThreads) label_codes_kernel(const LabelCodesParams p) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < p.R * p.stride;
       i += stride) {
    const int64_t r = i / p.stride, label = i - r * p.stride;
    const int32_t bucket = label < p.L ? p.buckets[r * p.L + label] : 0;
    const bool there = bucket >= 0 && bucket < p.B;
    if (!there) atomicOr(p.faults, 1u);
    p.codes[i] = static_cast<uint16_t>(there ? bucket : kMaxCodes - 1);
  }
}

__global__ void __launch_bounds__(kThreads) label_lists_kernel(const LabelListsParams p) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < p.L || i <= p.B;
       i += stride) {
    if (i < p.L) p.list_labels[i] = static_cast<int32_t>(p.labels[i]);
    if (i > p.B) continue;
    int64_t low = 0, high = p.L;  // first position of a bucket >= i
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (p.sorted[middle] < i)
        low = middle + 1;
      else
        high = middle;
    }
    p.list_starts[i] = static_cast<int32_t>(low);
  }
}

}  // namespace

cudaError_t launch_label_codes(const LabelCodesParams& params, cudaStream_t stream) {
  if (params.R * params.stride == 0) return cudaSuccess;
  return MACH_LAUNCH(label_codes_kernel, blocks_for(params.R * params.stride), kThreads, 0, stream, params);
}

cudaError_t launch_label_lists(const LabelListsParams& params, cudaStream_t stream) {
  return MACH_LAUNCH(label_lists_kernel, blocks_for(std::max(params.L, params.B + 1)), kThreads, 0, stream,
                     params);
}

}  // namespace mach
