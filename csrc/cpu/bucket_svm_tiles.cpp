#include "bucket_svm_tiles.h"

#include <algorithm>
#include <cmath>

#include "bucket_svm_newton.h"
#include "memory.h"
#include "svm_factor.h"

namespace mach {
namespace {

// A document longer than this counts as one of this length for the tolerance. If the tolerance fell without
// bound, a single long document could end far from its optimum.
constexpr double kLongest = 10;

// The first address from `pointer` on that is a multiple of kBytes.
template <size_t kBytes, class T>
T* aligned(T* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  return reinterpret_cast<T*>((address + kBytes - 1) / kBytes * kBytes);
}

// |x|^2 + 1 of each document.
template <class T>
Array<T> squares_of(const BucketSvmTiles<T>& p) {
  const T* x = p.values;
  Array<T> squares(p.N);
  for (int64_t n = 0; n < p.N; ++n) {
    double sum = 1;
    for (int64_t e = p.indptr[n]; e < p.indptr[n + 1]; ++e) sum += static_cast<double>(x[e]) * x[e];
    squares[n] = static_cast<T>(sum);
  }
  return squares;
}

template <class T>
Array<T> scales_of(const Array<T>& squares) {
  Array<T> scales(squares.size());
  for (size_t n = 0; n < scales.size(); ++n)
    scales[n] = static_cast<T>(1 / std::clamp(std::sqrt(squares[n] - 1.0), 1.0, kLongest));
  return scales;
}

template <class T>
SvmResult solve_newton(const BucketSvmTiles<T>& p, const BucketSvm<T>& svm, const SvmScratch<T>& scratch) {
  const int64_t vector = (p.D + 1) * kSvmTile, documents = p.N * kSvmTile;
  Array<T> memory(4 * vector + 3 * documents + kSvmTile);
  T* const first = aligned<kSvmTile * sizeof(T)>(memory.data());
  T* const second = first + 4 * vector;
  Array<int32_t> chosen(p.N);
  Array<double> documents_of_gram(kGramDocuments * (p.D + 1));
  const auto hessian = uninitialized<double>(bytes_of(p.D + 1, p.D + 1));  // mostly never touched
  const SvmNewtonScratch<T> newton{first,
                                   first + vector,
                                   first + 2 * vector,
                                   first + 3 * vector,
                                   second,
                                   second + documents,
                                   second + 2 * documents,
                                   chosen.data(),
                                   documents_of_gram.data(),
                                   hessian.get()};
  SvmResult result{};
  with_isa<T>([&](auto isa) { result = bucket_svm_newton<decltype(isa)>(svm, p.factor, scratch, newton); });
  return result;
}

template <class T>
SvmResult solve_dual(const BucketSvm<T>& svm, SvmScratch<T> scratch) {
  Array<T> alpha(svm.N * kSvmTile);
  Array<int32_t> order(svm.N);
  scratch.alpha = alpha.data();
  scratch.order = order.data();
  SvmResult result{};
  with_isa<T>([&](auto isa) { result = bucket_svm<decltype(isa)>(svm, scratch); });
  return result;
}

template <class T>
SvmResult solve_buckets(const BucketSvmTiles<T>& p, const BucketSvm<T>& svm, const SvmScratch<T>& scratch) {
  if (p.factor != nullptr) {
    const SvmResult result = solve_newton(p, svm, scratch);
    if (std::isfinite(result.violation)) return result;
    std::fill_n(scratch.w, (p.D + 1) * kSvmTile, T(0));  // Coordinate descent can do with such numbers.
  }
  return solve_dual(svm, scratch);
}

template <class T>
void solve(const BucketSvmTiles<T>& p, const BucketSvm<T>& svm, int64_t tile) {
  const int64_t begin = tile * kSvmTile, size = std::min(kSvmTile, p.M - begin), D = p.D;
  Array<T> memory((D + 2) * kSvmTile);
  T* const w = aligned<kSvmTile * sizeof(T)>(memory.data());
  Array<uint16_t> positives(p.N);
  uint32_t used = 0;
  for (int64_t n = 0; n < p.N; ++n)
    for (int64_t e = p.label_indptr[n]; e < p.label_indptr[n + 1]; ++e) {
      // What is no bucket at all is none of these, either.
      const int64_t b = p.buckets[p.label_indices[e]] - p.first - begin;
      if (b < 0 || b >= size) continue;
      positives[n] |= static_cast<uint16_t>(1u << b);
      used |= 1u << b;
    }
  const SvmScratch<T> scratch{w, nullptr, positives.data(), nullptr, used};
  const SvmResult result = used ? solve_buckets(p, svm, scratch) : SvmResult{};
  p.passes[tile] = result.passes;
  p.violations[tile] = result.violation;
  for (int64_t d = 0; d < D; ++d)
    for (int64_t j = 0; j < size; ++j)
      p.weight[d * p.weight_row + (begin + j) * p.weight_column] = w[d * kSvmTile + j];
  // Where no document wants a bucket: w = 0, a margin of -1.
  for (int64_t j = 0; j < size; ++j)
    p.bias[(begin + j) * p.bias_stride] = (used >> j) & 1u ? w[D * kSvmTile + j] : T(-1);
}

}  // namespace

template <class T>
void bucket_svm_tiles(const BucketSvmTiles<T>& p, const Tasks& run_tasks) {
  const Array<T> squares = squares_of(p);
  const Array<T> scales = scales_of(squares);
  const BucketSvm<T> svm{p.values,       p.indices,     p.indptr, p.N,         p.D,
                         squares.data(), scales.data(), p.C,      p.tolerance, p.max_passes};
  run_tasks(num_svm_tiles(p.M), [&](int64_t tile) { solve(p, svm, tile); });
}

template void bucket_svm_tiles(const BucketSvmTiles<float>& p, const Tasks& run_tasks);
template void bucket_svm_tiles(const BucketSvmTiles<double>& p, const Tasks& run_tasks);

}  // namespace mach
