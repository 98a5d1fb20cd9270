#include "../transform_logits.h"

#include <string>

#include "../parallel.h"
#include "tensors.h"

namespace mach {
namespace {

void transform_logits_cpu(Tensor logits, const std::string& name) {
  const char* op = "transform_logits";
  const Transform transform = parse_transform(op, name);
  MACH_CHECK(logits.is_contiguous(), op, ": logits must be contiguous");
  dispatch_floating(op, "logits", logits, [&](auto t) {
    using T = decltype(t);
    if (transform == Transform::none) return;
    with_isa<T>([&](auto isa) {
      parallel_ranges(logits.numel(), 16 * logits.numel(), [&](int64_t begin, int64_t end) {
        transform_logits<decltype(isa)>(transform, mutable_pointer<T>(logits), begin, end);
      });
    });
  });
}

}  // namespace
}  // namespace mach

STABLE_TORCH_LIBRARY_IMPL(mach_ext, CPU, m) { MACH_OPERATOR(transform_logits); }
