#include "../label_index.h"

#include <algorithm>
#include <tuple>

#include "../parallel.h"
#include "tensors.h"

namespace mach {
namespace {

std::tuple<Tensor, Tensor, Tensor> label_index_cpu(const Tensor& buckets_, int64_t num_buckets) {
  const char* op = "label_index";
  check_hash(op, buckets_, num_buckets);
  const int64_t R = buckets_.size(0), L = buckets_.size(1), B = num_buckets;
  const Tensor buckets = as_contiguous(buckets_);
  Tensor codes = allocate(buckets, {L, R}, ScalarType::UInt16);
  Tensor starts = allocate(buckets, {R, B + 1}), labels = allocate(buckets, {R, L});
  const bool in_range =
      label_index(pointer<int32_t>(buckets), R, B, L, mutable_pointer<uint16_t>(codes),
                  mutable_pointer<int32_t>(starts), mutable_pointer<int32_t>(labels), pool());
  if (!in_range) {
    const int32_t* bucket = pointer<int32_t>(buckets);
    const int32_t* wrong = std::find_if(bucket, bucket + R * L, [&](int32_t b) { return b < 0 || b >= B; });
    MACH_CHECK(false, op, ": buckets must be in [0, B=", B, "), got ", *wrong, " for label ",
               (wrong - bucket) % L, " in repetition ", (wrong - bucket) / L);
  }
  return {codes, starts, labels};
}

}  // namespace
}  // namespace mach

STABLE_TORCH_LIBRARY_IMPL(mach_ext, CPU, m) { MACH_OPERATOR(label_index); }
