#include "../signs.cuh"

#include "tensors.h"

namespace mach {
namespace {

Tensor signs_cuda(Tensor gradient, bool nonnegative) {
  const char* op = "signs";
  const DeviceGuard guard(gradient);
  check_rows(op, "gradient", gradient, "[N, T]");
  const int64_t N = gradient.size(0), columns = gradient.size(1), stride = N ? gradient.stride(0) : columns;
  Tensor counts = allocate(gradient, {N}, ScalarType::Long);
  dispatch_floating(op, "gradient", gradient, [&](auto t) {
    using T = decltype(t);
    check_cuda(launch_signs(SignsParams<T>{mutable_pointer<T>(gradient), N, stride, columns, nonnegative,
                                           mutable_pointer<int64_t>(counts)},
                            current_stream(gradient)));
  });
  return counts;
}

}  // namespace
}  // namespace mach

MACH_CUDA_LIBRARY_IMPL(m) { MACH_CUDA_OPERATOR(signs); }
