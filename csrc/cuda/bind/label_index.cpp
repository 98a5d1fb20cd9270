#include "../label_index.cuh"

#include <tuple>

#include "tensors.h"

namespace mach {
namespace {

// Built once for a hash, so it waits for the device. Codes are [L, R] as seen, [R, L padded] in memory.
std::tuple<Tensor, Tensor, Tensor> label_index_cuda(const Tensor& buckets_, int64_t num_buckets) {
  const char* op = "label_index";
  check_hash(op, buckets_, num_buckets);
  const int64_t R = buckets_.size(0), L = buckets_.size(1), B = num_buckets;
  const DeviceGuard guard(buckets_);
  const cudaStream_t stream = current_stream(buckets_);
  const Tensor buckets = as_contiguous(buckets_);
  const int64_t stride = padded_labels(L);
  const Tensor codes = allocate(buckets, {R, stride}, ScalarType::UInt16);
  const Tensor faults = new_zeros(buckets, {1});
  check_cuda(launch_label_codes({pointer<int32_t>(buckets), R, B, L, mutable_pointer<uint16_t>(codes), stride,
                                 mutable_pointer<uint32_t>(faults)},
                                stream));
  Tensor starts = allocate(buckets, {R, B + 1}), labels = allocate(buckets, {R, L});
  for (int64_t r = 0; r < R; ++r) {
    const auto [sorted, from] = stable_sort(torch::stable::select(buckets, 0, r), false);
    check_cuda(launch_label_lists(
        {pointer<int32_t>(sorted), pointer<int64_t>(from), B, L,
         mutable_pointer<int32_t>(starts) + r * (B + 1), mutable_pointer<int32_t>(labels) + r * L},
        stream));
  }
  // After all launches: the index is kept with the hash, and its first use may be on another stream.
  uint32_t fault = 0;
  check_cuda(cudaMemcpyAsync(&fault, faults.const_data_ptr(), sizeof fault, cudaMemcpyDeviceToHost, stream));
  check_cuda(cudaStreamSynchronize(stream));
  MACH_CHECK(fault == 0, op, ": buckets must be in [0, B=", B, ")");
  Tensor seen = torch::stable::transpose(codes, 0, 1);
  return {torch::stable::narrow(seen, 0, 0, L), starts, labels};
}

}  // namespace
}  // namespace mach

MACH_CUDA_LIBRARY_IMPL(m) { MACH_CUDA_OPERATOR(label_index); }
