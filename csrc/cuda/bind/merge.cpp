#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>

#include "../label_index.cuh"
#include "../merge_scan.cuh"
#include "../merge_scores.cuh"
#include "../merge_topk.cuh"
#include "tensors.h"

namespace mach {
namespace {

struct MergeArguments {
  Tensor scores, buckets;
  Merge merge;
  int64_t N() const { return scores.size(0); }
  int64_t R() const { return scores.size(1); }
  int64_t B() const { return scores.size(2); }
  int64_t L() const { return buckets.size(1); }

  template <class T>
  MergeInput<T> input() const {
    return {pointer<T>(scores),
            scores.stride(0),
            scores.stride(1),
            pointer<int32_t>(buckets),
            N(),
            R(),
            B(),
            L(),
            merge};
  }
};

// scores may be strided (as a transposed [R, N, B] is) as long as the buckets of a repetition are adjacent.
MergeArguments merge_arguments(const char* op, const Tensor& scores, const Tensor& buckets,
                               const std::string& merge) {
  MACH_CHECK(scores.dim() == 3 && scores.size(1) >= 1, op, ": scores must be [N, R, B] with R >= 1");
  check_dtype(op, "buckets", buckets, ScalarType::Int);
  check_shape(op, "buckets", buckets, {scores.size(1), buckets.size(1)});
  check_device(op, scores, {buckets});
  const bool adjacent = scores.size(2) <= 1 || scores.stride(2) == 1;
  return {adjacent ? scores : as_contiguous(scores), as_contiguous(buckets), parse_merge(op, merge)};
}

Tensor checked_labels(const char* op, const Tensor& labels, const Tensor& scores) {
  check_dtype(op, "labels", labels, ScalarType::Long);
  MACH_CHECK(labels.dim() == 2 && labels.size(0) == scores.size(0), op, ": labels must be [N, m]");
  check_device(op, scores, {labels});
  return as_contiguous(labels);
}

Tensor merge_scores_cuda(const Tensor& scores, const Tensor& buckets, const Tensor& labels_,
                         const std::string& merge) {
  const char* op = "merge_scores";
  const DeviceGuard guard(scores);
  const MergeArguments a = merge_arguments(op, scores, buckets, merge);
  const Tensor labels = checked_labels(op, labels_, scores);
  Tensor out = allocate(scores, {a.N(), labels.size(1)});
  dispatch_floating(op, "scores", scores, [&](auto t) {
    using T = decltype(t);
    check_cuda(launch_merge_scores(MergeScoresParams<T>{a.input<T>(), pointer<int64_t>(labels),
                                                        labels.size(1), mutable_pointer<T>(out), nullptr},
                                   current_stream(scores)));
  });
  return out;
}

Tensor merge_scores_grad_cuda(const Tensor& grad_, const Tensor& scores, const Tensor& buckets,
                              const Tensor& labels_, const std::string& merge) {
  const char* op = "merge_scores_grad";
  const DeviceGuard guard(scores);
  const MergeArguments a = merge_arguments(op, scores, buckets, merge);
  const Tensor labels = checked_labels(op, labels_, scores);
  const int64_t m = labels.size(1);
  check_device(op, scores, {grad_});
  const Tensor grad = checked(op, "grad", grad_, {a.N(), m}, scores.scalar_type());
  Tensor out = new_zeros(scores, {a.N(), a.R(), a.B()});
  const Tensor chosen = allocate(scores, {a.N(), m, 2}, ScalarType::Int);
  dispatch_floating(op, "scores", scores, [&](auto t) {
    using T = decltype(t);
    check_cuda(launch_merge_scores_grad(
        MergeScoresGradParams<T>{a.input<T>(), pointer<int64_t>(labels), m, pointer<T>(grad),
                                 mutable_pointer<int2>(chosen), mutable_pointer<T>(out)},
        current_stream(scores)));
  });
  return out;
}

Tensor gather(const Tensor& t, const Tensor& index) {
  using torch::stable::detail::from;
  StableIValue stack[]{from(t), from(int64_t{-1}), from(index), from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::gather", "", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Built once for a hash, so it may wait for the device. Codes are [L, R] as seen, [R, L padded] in memory.
std::tuple<Tensor, Tensor, Tensor> label_index_cuda(const Tensor& buckets_, int64_t num_buckets) {
  const char* op = "label_index";
  MACH_CHECK(buckets_.dim() == 2, op, ": buckets must be [R, L]");
  check_dtype(op, "buckets", buckets_, ScalarType::Int);
  const int64_t R = buckets_.size(0), L = buckets_.size(1), B = num_buckets;
  MACH_CHECK(B >= 1 && B <= kMaxCodes && L <= INT32_MAX, op, ": needs 1 <= B <= ", kMaxCodes,
             " and L < 2^31, got B=", B, ", L=", L);
  const DeviceGuard guard(buckets_);
  const cudaStream_t stream = current_stream(buckets_);
  const Tensor buckets = as_contiguous(buckets_);
  const int64_t stride = padded_labels(L);
  const Tensor codes = allocate(buckets, {R, stride}, ScalarType::UInt16);
  const Tensor faults = new_zeros(buckets, {1});
  check_cuda(launch_label_codes({pointer<int32_t>(buckets), R, B, L, mutable_pointer<uint16_t>(codes), stride,
                                 mutable_pointer<uint32_t>(faults)},
                                stream));
  uint32_t fault = 0;
  check_cuda(cudaMemcpyAsync(&fault, faults.const_data_ptr(), sizeof fault, cudaMemcpyDeviceToHost, stream));
  check_cuda(cudaStreamSynchronize(stream));
  MACH_CHECK(fault == 0, op, ": buckets must be in [0, B=", B, ")");
  Tensor starts = allocate(buckets, {R, B + 1}), labels = allocate(buckets, {R, L});
  for (int64_t r = 0; r < R; ++r) {
    const auto [sorted, from] = stable_sort(torch::stable::select(buckets, 0, r), false);
    check_cuda(launch_label_lists(
        {pointer<int32_t>(sorted), pointer<int64_t>(from), B, L,
         mutable_pointer<int32_t>(starts) + r * (B + 1), mutable_pointer<int32_t>(labels) + r * L},
        stream));
  }
  Tensor seen = torch::stable::transpose(codes, 0, 1);
  return {torch::stable::narrow(seen, 0, 0, L), starts, labels};
}

Path parse_path(const char* op, const std::string& path) {
  if (path == "direct") return Path::direct;
  if (path == "scan") return Path::scan;
  if (path == "lists") return Path::lists;
  MACH_CHECK(path == "auto", op, ": path must be auto, direct, scan or lists, got ", path);
  return Path::automatic;
}

constexpr int64_t kScanFrom = 1 << 16;   // L * R: less is not worth the scan's launches
constexpr int64_t kListsFrom = 1 << 28;  // rows of the scan, for 16 documents at least: less is not worth it
constexpr int64_t kListsUpTo = 32;       // k: more labels don't stand out by few buckets
constexpr int64_t kScanDocuments = 256;  // that are scanned together: their table is R * B bytes each

// Elements of the memory that the tensor lies in, from its first one on.
int64_t elements_behind(const Tensor& t) {
  int64_t bytes = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &bytes));
  return bytes / static_cast<int64_t>(t.element_size()) - t.storage_offset();
}

// Scans the labels of a few hundred documents at a time, then takes the best of what is left.
void scan_topk(const MergeArguments& a, const Tensor& codes_, const Tensor& list_starts,
               const Tensor& list_labels, const MergeTopKParams<float>& all, Path path, cudaStream_t stream) {
  const int64_t N = a.N(), R = a.R(), B = a.B(), L = a.L(), k = all.k;
  Tensor codes = codes_;
  int64_t stride = codes.stride(1);
  // Not as label_index_cuda leaves them: eight labels' codes are one load of 16 bytes, those behind the last
  // label too.
  if (codes.stride(0) != 1 || stride % 8 != 0 || stride < L ||
      reinterpret_cast<uintptr_t>(codes.const_data_ptr()) % 16 != 0 ||
      elements_behind(codes) < (R - 1) * stride + padded_labels(L)) {
    stride = padded_labels(L);
    codes = allocate(codes, {R, stride});
    const Tensor faults = allocate(a.buckets, {1});
    check_cuda(launch_label_codes({pointer<int32_t>(a.buckets), R, B, L, mutable_pointer<uint16_t>(codes),
                                   stride, mutable_pointer<uint32_t>(faults)},
                                  stream));
  }
  Lists lists = Lists::none;
  if (path == Path::automatic && k <= kListsUpTo && L * R >= kListsFrom / std::max<int64_t>(N, 16))
    lists = Lists::likely;
  if (path == Path::lists) lists = Lists::all;
  if (k > kMaxListsK || a.merge != Merge::mean) lists = Lists::none;
  const int64_t parts = (N + kScanDocuments - 1) / kScanDocuments, size = (N + parts - 1) / parts;
  const Tensor scratch = allocate(codes, {scan_scratch_bytes(size, R, B, L, k)}, ScalarType::Byte);
  for (int64_t begin = 0; begin < N; begin += size) {
    MergeTopKParams<float> some = all;
    some.merge.N = std::min(size, N - begin);
    some.merge.scores += begin * all.merge.document_stride;
    some.values += begin * k;
    some.labels += begin * k;
    if (all.trace) some.trace += begin * kTraceColumns;
    check_cuda(launch_merge_scan(
        {some.merge, k, lists, pointer<uint16_t>(codes), stride, pointer<int32_t>(list_starts),
         pointer<int32_t>(list_labels), scratch.mutable_data_ptr()},
        &some.candidates, stream));
    check_cuda(launch_merge_topk(some, stream));
  }
}

std::tuple<Tensor, Tensor> merge_topk_cuda(const Tensor& scores, const Tensor& buckets,
                                           const std::optional<Tensor>& codes,
                                           const std::optional<Tensor>& list_starts,
                                           const std::optional<Tensor>& list_labels, int64_t k,
                                           const std::string& merge, const std::string& path_,
                                           const std::optional<Tensor>& trace) {
  const char* op = "merge_topk";
  const DeviceGuard guard(scores);
  const cudaStream_t stream = current_stream(scores);
  const MergeArguments a = merge_arguments(op, scores, buckets, merge);
  const int64_t N = a.N(), R = a.R(), B = a.B(), L = a.L();
  MACH_CHECK(k >= 0 && k <= L && L <= INT32_MAX, op, ": needs 0 <= k <= L < 2^31, got k=", k, ", L=", L);
  MACH_CHECK(B >= 1 || L == 0, op, ": scores must have B >= 1 buckets");
  if (codes) {
    check_label_index(op, *codes, list_starts, list_labels, R, L, B);
    check_device(op, scores, {*codes, *list_starts, *list_labels});
    MACH_CHECK(list_starts->is_contiguous() && list_labels->is_contiguous(), op,
               ": list_starts and list_labels must be contiguous");
  }
  if (trace) {
    check_shape(op, "trace", *trace, {N, kTraceColumns});
    check_dtype(op, "trace", *trace, ScalarType::Long);
    check_device(op, scores, {*trace});
    MACH_CHECK(trace->is_contiguous(), op, ": trace must be contiguous");
    Tensor rows = *trace;
    torch::stable::zero_(rows);
  }
  const Path path = parse_path(op, path_);
  Tensor values = allocate(scores, {N, k}), labels = allocate(scores, {N, k}, ScalarType::Long);
  if (values.numel() == 0) return {values, labels};
  dispatch_floating(op, "scores", scores, [&](auto t) {
    using T = decltype(t);
    MergeTopKParams<T> params{a.input<T>(),
                              k,
                              {},
                              1,
                              nullptr,
                              mutable_pointer<T>(values),
                              mutable_pointer<int64_t>(labels),
                              trace ? mutable_pointer<int64_t>(*trace) : nullptr};
    if constexpr (std::is_same_v<T, float>) {
      const bool possible = codes && k <= kMaxScanK && R <= kMaxScanRepetitions;
      if (possible && path != Path::direct && (path != Path::automatic || L * R >= kScanFrom))
        return scan_topk(a, *codes, *list_starts, *list_labels, params, path, stream);
    }
    params.blocks = blocks_per_document(N, L);
    std::optional<Tensor> shared;
    if (params.blocks > 1) {
      shared = new_zeros(scores, {shared_bytes(N)}, ScalarType::Byte);
      params.shared = shared->mutable_data_ptr();
    }
    check_cuda(launch_merge_topk(params, stream));
    if (k <= kMaxOrdered) return;
    // The library puts many labels in order: by label, then by key.
    const Tensor ascending = std::get<0>(stable_sort(labels, false));
    const Tensor ranks = allocate(labels, {N, k});
    MergeScoresParams<T> keys{params.merge, pointer<int64_t>(ascending), k, nullptr,
                              mutable_pointer<int64_t>(ranks)};
    check_cuda(launch_merge_scores(keys, stream));
    labels = gather(ascending, std::get<1>(stable_sort(ranks, true)));
    keys.labels = pointer<int64_t>(labels);
    keys.out = mutable_pointer<T>(values);
    check_cuda(launch_merge_scores(keys, stream));
  });
  return {values, labels};
}

}  // namespace
}  // namespace mach

MACH_CUDA_LIBRARY_IMPL(m) {
  MACH_CUDA_OPERATOR(merge_scores);
  MACH_CUDA_OPERATOR(merge_scores_grad);
  MACH_CUDA_OPERATOR(label_index);
  MACH_CUDA_OPERATOR(merge_topk);
}
