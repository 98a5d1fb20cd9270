// CUDA twin of cpu/signs.h: G [N, T] overwritten by its signs, +1, -1, or 0 (also where it is NaN); with
// `nonnegative` -1 becomes 0. The same bits as the CPU's.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace mach {

template <class T>
struct SignsParams {
  T* gradient;  // [N, T], rows stride apart
  int64_t N, stride, columns;
  bool nonnegative;
  int64_t* counts;  // [N] entries that are not 0
};
template <class T>
cudaError_t launch_signs(const SignsParams<T>& params, cudaStream_t stream);

}  // namespace mach
