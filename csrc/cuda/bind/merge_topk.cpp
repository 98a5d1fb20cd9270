#include "../merge_topk.cuh"

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../label_index.cuh"
#include "../merge_parts.cuh"
#include "../merge_scan.cuh"
#include "merge.h"
#include "tensors.h"

namespace mach {
namespace {

Tensor gather(const Tensor& t, const Tensor& index) {
  using torch::stable::detail::from;
  StableIValue stack[]{from(t), from(int64_t{-1}), from(index), from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::gather", "", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

constexpr int64_t kScanFrom = 1 << 16;   // L * R: less is not worth the scan's launches
constexpr int64_t kListsFrom = 1 << 28;  // rows of the scan, for 16 documents at least: less is not worth it
constexpr int64_t kListsUpTo = 32;       // k: more labels don't stand out by few buckets
constexpr int64_t kScanDocuments = 256;  // that are scanned together: their table is R * B bytes each

static_assert(kMaxScanK <= kMaxPartsK, "every document that leaves the scan goes there");

// Elements of the memory that the tensor lies in, from its first one on.
int64_t elements_behind(const Tensor& t) {
  int64_t bytes = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &bytes));
  return bytes / static_cast<int64_t>(t.element_size()) - t.storage_offset();
}

// Scans the labels of a few hundred documents at a time, then takes the best of what is left.
void scan_topk(const MergeArguments& a, const Tensor& codes_, const Tensor& list_starts,
               const Tensor& list_labels, const GivenExtremes& extremes, const MergeTopKParams<float>& all,
               Path path, cudaStream_t stream) {
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
    GivenExtremes given = extremes;
    if (given.high) {
      given.high += begin * R;
      given.low += begin * R;
      given.best += begin * R;
      given.peaks += begin * R * num_peaks(B);
    }
    check_cuda(launch_merge_scan(
        {some.merge, k, lists, pointer<uint16_t>(codes), stride, pointer<int32_t>(list_starts),
         pointer<int32_t>(list_labels), given, scratch.mutable_data_ptr()},
        &some.candidates, stream));
    check_cuda(launch_merge_parts(some.merge, k, some.candidates, stream));
    check_cuda(launch_merge_topk(some, stream));
  }
}

// high, low, best and peaks of the operator bucket_forward_extremes. What is in them is not looked at.
GivenExtremes given_extremes(const char* op, const MergeArguments& a, const std::vector<Tensor>& extremes) {
  MACH_CHECK(extremes.size() == 4, op, ": extremes must be (high, low, best, peaks)");
  check_dtype(op, "scores with extremes", a.scores, ScalarType::Float);
  for (size_t i = 0; i < 4; ++i) {
    const char* name = "extremes";
    check_device(op, a.scores, {extremes[i]});
    check_dtype(op, name, extremes[i], i == 2 ? ScalarType::Int : ScalarType::Float);
    i == 3 ? check_shape(op, name, extremes[i], {a.N(), a.R(), num_peaks(a.B())})
           : check_shape(op, name, extremes[i], {a.N(), a.R()});
    MACH_CHECK(extremes[i].is_contiguous(), op, ": extremes must be contiguous");
  }
  return {pointer<float>(extremes[0]), pointer<float>(extremes[1]), pointer<int32_t>(extremes[2]),
          pointer<float>(extremes[3])};
}

std::tuple<Tensor, Tensor> merge_topk_cuda(const Tensor& scores, const Tensor& buckets,
                                           const std::optional<Tensor>& codes,
                                           const std::optional<Tensor>& list_starts,
                                           const std::optional<Tensor>& list_labels, int64_t k,
                                           const std::string& merge, const std::string& path_,
                                           const std::optional<Tensor>& trace,
                                           const std::optional<std::vector<Tensor>>& extremes) {
  const char* op = "merge_topk";
  const DeviceGuard guard(scores);
  const cudaStream_t stream = current_stream(scores);
  const MergeArguments a = merge_arguments_on_device(op, scores, buckets, merge);
  const int64_t N = a.N(), R = a.R(), L = a.L();
  check_topk(op, a, k, codes, list_starts, list_labels, trace);
  if (codes) {
    check_device(op, scores, {*codes, *list_starts, *list_labels});
    MACH_CHECK(list_starts->is_contiguous() && list_labels->is_contiguous(), op,
               ": list_starts and list_labels must be contiguous");
  }
  if (trace) {
    check_device(op, scores, {*trace});
    Tensor rows = *trace;
    torch::stable::zero_(rows);
  }
  const Path path = parse_path(op, path_);
  const GivenExtremes given = extremes ? given_extremes(op, a, *extremes) : GivenExtremes{};
  Tensor values = allocate(scores, {N, k}), labels = allocate(scores, {N, k}, ScalarType::Long);
  if (values.numel() == 0) return {values, labels};
  dispatch_floating(op, "scores", scores, [&](auto t) {
    using T = decltype(t);
    MergeTopKParams<T> params{merge_input<T>(a),
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
        return scan_topk(a, *codes, *list_starts, *list_labels, given, params, path, stream);
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

MACH_CUDA_LIBRARY_IMPL(m) { MACH_CUDA_OPERATOR(merge_topk); }
