#include "../merge_scores.h"

#include <string>

#include "../parallel.h"
#include "merge.h"
#include "tensors.h"

namespace mach {
namespace {

Tensor merge_scores_cpu(const Tensor& scores, const Tensor& buckets, const Tensor& labels_,
                        const std::string& merge) {
  const char* op = "merge_scores";
  const MergeArguments a = merge_arguments(op, scores, buckets, merge);
  const Tensor labels = checked_labels(op, labels_, a.N());
  const int64_t m = labels.size(1);
  Tensor out = allocate(scores, {a.N(), m});
  dispatch_floating(op, "scores", scores, [&](auto t) {
    using T = decltype(t);
    with_isa<T>([&](auto isa) {
      parallel_ranges(a.N(), labels.numel() * a.R() * 4, [&](int64_t begin, int64_t end) {
        Array<T> sorted(a.R());
        merge_scores<decltype(isa)>(merge_params<T>(a), pointer<int64_t>(labels), m, mutable_pointer<T>(out),
                                    sorted.data(), begin, end);
      });
    });
  });
  return out;
}

Tensor merge_scores_grad_cpu(const Tensor& grad_, const Tensor& scores, const Tensor& buckets,
                             const Tensor& labels_, const std::string& merge) {
  const char* op = "merge_scores_grad";
  const MergeArguments a = merge_arguments(op, scores, buckets, merge);
  const Tensor labels = checked_labels(op, labels_, a.N());
  const Tensor grad = checked(op, "grad", grad_, {a.N(), labels.size(1)}, scores.scalar_type());
  Tensor out = zeros(scores, {a.N(), a.R(), a.B()});
  dispatch_floating(op, "scores", scores, [&](auto t) {
    using T = decltype(t);
    with_isa<T>([&](auto isa) {
      parallel_ranges(a.N(), labels.numel() * a.R() * 4, [&](int64_t begin, int64_t end) {
        Array<int32_t> order(a.R());
        merge_scores_grad<decltype(isa)>(merge_params<T>(a), pointer<int64_t>(labels), labels.size(1),
                                         pointer<T>(grad), mutable_pointer<T>(out), order.data(), begin, end);
      });
    });
  });
  return out;
}

}  // namespace
}  // namespace mach

STABLE_TORCH_LIBRARY_IMPL(mach_ext, CPU, m) {
  MACH_OPERATOR(merge_scores);
  MACH_OPERATOR(merge_scores_grad);
}
