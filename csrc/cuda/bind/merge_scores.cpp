#include "../merge_scores.cuh"

#include <string>

#include "merge.h"
#include "tensors.h"

namespace mach {
namespace {

Tensor merge_scores_cuda(const Tensor& scores, const Tensor& buckets, const Tensor& labels_,
                         const std::string& merge) {
  const char* op = "merge_scores";
  const DeviceGuard guard(scores);
  const MergeArguments a = merge_arguments_on_device(op, scores, buckets, merge);
  check_device(op, scores, {labels_});
  const Tensor labels = checked_labels(op, labels_, a.N());
  Tensor out = allocate(scores, {a.N(), labels.size(1)});
  dispatch_floating(op, "scores", scores, [&](auto t) {
    using T = decltype(t);
    check_cuda(launch_merge_scores(MergeScoresParams<T>{merge_input<T>(a), pointer<int64_t>(labels),
                                                        labels.size(1), mutable_pointer<T>(out), nullptr},
                                   current_stream(scores)));
  });
  return out;
}

Tensor merge_scores_grad_cuda(const Tensor& grad_, const Tensor& scores, const Tensor& buckets,
                              const Tensor& labels_, const std::string& merge) {
  const char* op = "merge_scores_grad";
  const DeviceGuard guard(scores);
  const MergeArguments a = merge_arguments_on_device(op, scores, buckets, merge);
  check_device(op, scores, {labels_});
  const Tensor labels = checked_labels(op, labels_, a.N());
  const int64_t m = labels.size(1);
  check_device(op, scores, {grad_});
  const Tensor grad = checked(op, "grad", grad_, {a.N(), m}, scores.scalar_type());
  Tensor out = new_zeros(scores, {a.N(), a.R(), a.B()});
  const Tensor chosen = allocate(scores, {a.N(), m, 2}, ScalarType::Int);
  dispatch_floating(op, "scores", scores, [&](auto t) {
    using T = decltype(t);
    check_cuda(launch_merge_scores_grad(
        MergeScoresGradParams<T>{merge_input<T>(a), pointer<int64_t>(labels), m, pointer<T>(grad),
                                 mutable_pointer<int2>(chosen), mutable_pointer<T>(out)},
        current_stream(scores)));
  });
  return out;
}

}  // namespace
}  // namespace mach

MACH_CUDA_LIBRARY_IMPL(m) {
  MACH_CUDA_OPERATOR(merge_scores);
  MACH_CUDA_OPERATOR(merge_scores_grad);
}
