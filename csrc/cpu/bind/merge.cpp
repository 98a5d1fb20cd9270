#include <algorithm>
#include <optional>
#include <string>
#include <tuple>

#include "../label_index.h"
#include "../merge_scores.h"
#include "../merge_topk.h"
#include "../parallel.h"
#include "tensors.h"

namespace mach {
namespace {

struct MergeArguments {
  Tensor scores, buckets;
  Merge merge;
  int64_t N() const { return scores.size(0); }
  int64_t R() const { return scores.size(1); }

  template <class T>
  MergeScores<T> params() const {
    return {pointer<T>(scores),
            scores.stride(0),
            scores.stride(1),
            pointer<int32_t>(buckets),
            R(),
            scores.size(2),
            buckets.size(1),
            merge};
  }
};

// scores may be strided (as a transposed [R, N, B] is) as long as the buckets of a repetition are adjacent.
MergeArguments merge_arguments(const char* op, const Tensor& scores, const Tensor& buckets,
                               const std::string& merge) {
  MACH_CHECK(scores.dim() == 3 && scores.size(1) >= 1, op, ": scores must be [N, R, B] with R >= 1");
  check_dtype(op, "buckets", buckets, ScalarType::Int);
  check_shape(op, "buckets", buckets, {scores.size(1), buckets.size(1)});
  const bool adjacent = scores.size(2) <= 1 || scores.stride(2) == 1;
  return {adjacent ? scores : as_contiguous(scores), as_contiguous(buckets), parse_merge(op, merge)};
}

Tensor checked_labels(const char* op, const Tensor& labels, int64_t N) {
  check_dtype(op, "labels", labels, ScalarType::Long);
  MACH_CHECK(labels.dim() == 2 && labels.size(0) == N, op, ": labels must be [N, m]");
  return as_contiguous(labels);
}

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
        merge_scores<decltype(isa)>(a.params<T>(), pointer<int64_t>(labels), m, mutable_pointer<T>(out),
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
  Tensor out = zeros(scores, {a.N(), a.R(), scores.size(2)});
  dispatch_floating(op, "scores", scores, [&](auto t) {
    using T = decltype(t);
    with_isa<T>([&](auto isa) {
      parallel_ranges(a.N(), labels.numel() * a.R() * 4, [&](int64_t begin, int64_t end) {
        Array<int32_t> order(a.R());
        merge_scores_grad<decltype(isa)>(a.params<T>(), pointer<int64_t>(labels), labels.size(1),
                                         pointer<T>(grad), mutable_pointer<T>(out), order.data(), begin, end);
      });
    });
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> label_index_cpu(const Tensor& buckets_, int64_t num_buckets) {
  const char* op = "label_index";
  MACH_CHECK(buckets_.dim() == 2, op, ": buckets must be [R, L]");
  check_dtype(op, "buckets", buckets_, ScalarType::Int);
  const int64_t R = buckets_.size(0), L = buckets_.size(1), B = num_buckets;
  MACH_CHECK(B >= 1 && B <= kMaxCodes && L <= INT32_MAX, op, ": needs 1 <= B <= ", kMaxCodes,
             " and L < 2^31, got B=", B, ", L=", L);
  const Tensor buckets = as_contiguous(buckets_);
  Tensor codes = allocate(buckets, {L, R}, ScalarType::UInt16);
  Tensor starts = allocate(buckets, {R, B + 1}), labels = allocate(buckets, {R, L});
  const bool in_range = label_index(pointer<int32_t>(buckets), R, B, L, mutable_pointer<uint16_t>(codes),
                                    mutable_pointer<int32_t>(starts), mutable_pointer<int32_t>(labels),
                                    [](int64_t count, const auto& task) { run_tasks(count, task); });
  if (!in_range) {
    const int32_t* bucket = pointer<int32_t>(buckets);
    const int32_t* wrong = std::find_if(bucket, bucket + R * L, [&](int32_t b) { return b < 0 || b >= B; });
    MACH_CHECK(false, op, ": buckets must be in [0, B=", B, "), got ", *wrong, " for label ",
               (wrong - bucket) % L, " in repetition ", (wrong - bucket) / L);
  }
  return {codes, starts, labels};
}

Path parse_path(const char* op, const std::string& path) {
  if (path == "direct") return Path::direct;
  if (path == "scan") return Path::scan;
  if (path == "lists") return Path::lists;
  MACH_CHECK(path == "auto", op, ": path must be auto, direct, scan or lists, got ", path);
  return Path::automatic;
}

std::tuple<Tensor, Tensor> merge_topk_cpu(const Tensor& scores, const Tensor& buckets,
                                          const std::optional<Tensor>& codes,
                                          const std::optional<Tensor>& list_starts,
                                          const std::optional<Tensor>& list_labels, int64_t k,
                                          const std::string& merge, const std::string& path,
                                          const std::optional<Tensor>& trace) {
  const char* op = "merge_topk";
  const MergeArguments a = merge_arguments(op, scores, buckets, merge);
  const int64_t N = a.N(), R = a.R(), B = scores.size(2), L = a.buckets.size(1);
  MACH_CHECK(k >= 0 && k <= L && L <= INT32_MAX, op, ": needs 0 <= k <= L < 2^31, got k=", k, ", L=", L);
  MACH_CHECK(B >= 1 || L == 0, op, ": scores must have B >= 1 buckets");
  LabelIndex index{};
  if (codes) {
    check_label_index(op, *codes, list_starts, list_labels, R, L, B);
    MACH_CHECK(codes->is_contiguous() && list_starts->is_contiguous() && list_labels->is_contiguous(), op,
               ": codes, list_starts and list_labels must be contiguous");
    index = {pointer<uint16_t>(*codes), pointer<int32_t>(*list_starts), pointer<int32_t>(*list_labels)};
  }
  if (trace) {
    check_shape(op, "trace", *trace, {N, kTraceColumns});
    check_dtype(op, "trace", *trace, ScalarType::Long);
    MACH_CHECK(trace->is_contiguous(), op, ": trace must be contiguous");
    std::fill_n(mutable_pointer<int64_t>(*trace), trace->numel(), 0);
  }
  Tensor values = allocate(scores, {N, k}), labels = allocate(scores, {N, k}, ScalarType::Long);
  if (values.numel() == 0) return {values, labels};
  dispatch_floating(op, "scores", scores, [&](auto t) {
    using T = decltype(t);
    merge_topk(MergeTopK<T>{
        a.params<T>(), codes ? &index : nullptr, N, k, parse_path(op, path), num_threads_for(N * L * R),
        [](int64_t count, const auto& task) { run_tasks(count, task); }, mutable_pointer<T>(values),
        mutable_pointer<int64_t>(labels), trace ? mutable_pointer<int64_t>(*trace) : nullptr});
  });
  return {values, labels};
}

}  // namespace
}  // namespace mach

STABLE_TORCH_LIBRARY_IMPL(mach_ext, CPU, m) {
  MACH_OPERATOR(merge_scores);
  MACH_OPERATOR(merge_scores_grad);
  MACH_OPERATOR(label_index);
  MACH_OPERATOR(merge_topk);
}
