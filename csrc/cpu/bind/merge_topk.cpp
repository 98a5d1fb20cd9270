#include "../merge_topk.h"

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../parallel.h"
#include "merge.h"
#include "tensors.h"

namespace mach {
namespace {

std::tuple<Tensor, Tensor> merge_topk_cpu(const Tensor& scores, const Tensor& buckets,
                                          const std::optional<Tensor>& codes,
                                          const std::optional<Tensor>& list_starts,
                                          const std::optional<Tensor>& list_labels, int64_t k,
                                          const std::string& merge, const std::string& path,
                                          const std::optional<Tensor>& trace,
                                          const std::optional<std::vector<Tensor>>& /*extremes*/) {
  const char* op = "merge_topk";
  const MergeArguments a = merge_arguments(op, scores, buckets, merge);
  check_topk(op, a, k, codes, list_starts, list_labels, trace);
  const int64_t N = a.N();
  LabelIndex index{};
  if (codes) {
    MACH_CHECK(codes->is_contiguous() && list_starts->is_contiguous() && list_labels->is_contiguous(), op,
               ": codes, list_starts and list_labels must be contiguous");
    index = {pointer<uint16_t>(*codes), pointer<int32_t>(*list_starts), pointer<int32_t>(*list_labels)};
  }
  if (trace) std::fill_n(mutable_pointer<int64_t>(*trace), trace->numel(), 0);
  Tensor values = allocate(scores, {N, k}), labels = allocate(scores, {N, k}, ScalarType::Long);
  if (values.numel() == 0) return {values, labels};
  dispatch_floating(op, "scores", scores, [&](auto t) {
    using T = decltype(t);
    merge_topk(MergeTopK<T>{merge_params<T>(a), codes ? &index : nullptr, N, k, parse_path(op, path),
                            num_threads_for(N * a.L() * a.R()), pool(), mutable_pointer<T>(values),
                            mutable_pointer<int64_t>(labels),
                            trace ? mutable_pointer<int64_t>(*trace) : nullptr});
  });
  return {values, labels};
}

}  // namespace
}  // namespace mach

STABLE_TORCH_LIBRARY_IMPL(mach_ext, CPU, m) { MACH_OPERATOR(merge_topk); }
