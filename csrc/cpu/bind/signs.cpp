#include "../signs.h"

#include "../parallel.h"
#include "tensors.h"

namespace mach {
namespace {

Tensor signs_cpu(Tensor gradient, bool nonnegative) {
  const char* op = "signs";
  check_rows(op, "gradient", gradient, "[N, T]");
  const int64_t N = gradient.size(0), columns = gradient.size(1), stride = N ? gradient.stride(0) : columns;
  Tensor counts = allocate(gradient, {N}, ScalarType::Long);
  dispatch_floating(op, "gradient", gradient, [&](auto t) {
    using T = decltype(t);
    const Signs<T> params{mutable_pointer<T>(gradient), stride, columns, nonnegative};
    with_isa<T>([&](auto isa) {
      parallel_ranges(N, N * columns, [&](int64_t begin, int64_t end) {
        signs<decltype(isa)>(params, mutable_pointer<int64_t>(counts), begin, end);
      });
    });
  });
  return counts;
}

}  // namespace
}  // namespace mach

STABLE_TORCH_LIBRARY_IMPL(mach_ext, CPU, m) { MACH_OPERATOR(signs); }
