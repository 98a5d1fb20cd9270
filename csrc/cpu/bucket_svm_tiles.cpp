#include "bucket_svm_tiles.h"

#include <algorithm>

#include "memory.h"

namespace mach {
namespace {

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
void solve(const BucketSvmTiles<T>& p, const BucketSvm<T>& svm, int64_t tile) {
  const int64_t begin = tile * kSvmTile, size = std::min(kSvmTile, p.M - begin), D = p.D;
  Array<T> memory((D + 2) * kSvmTile), alpha(p.N * kSvmTile);
  T* const w = aligned<kSvmTile * sizeof(T)>(memory.data());
  Array<uint16_t> positives(p.N);
  Array<int32_t> order(p.N);
  uint32_t used = 0;
  for (int64_t n = 0; n < p.N; ++n)
    for (int64_t e = p.label_indptr[n]; e < p.label_indptr[n + 1]; ++e) {
      // What is no bucket at all is none of these, either.
      const int64_t b = p.buckets[p.label_indices[e]] - p.first - begin;
      if (b < 0 || b >= size) continue;
      positives[n] |= static_cast<uint16_t>(1u << b);
      used |= 1u << b;
    }
  const SvmScratch<T> scratch{w, alpha.data(), positives.data(), order.data(), used};
  with_isa<T>([&](auto isa) { p.passes[tile] = used ? bucket_svm<decltype(isa)>(svm, scratch) : 0; });
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
  const BucketSvm<T> svm{p.values,       p.indices, p.indptr,    p.N,         p.D,
                         squares.data(), p.C,       p.tolerance, p.max_passes};
  run_tasks(num_svm_tiles(p.M), [&](int64_t tile) { solve(p, svm, tile); });
}

template void bucket_svm_tiles(const BucketSvmTiles<float>& p, const Tasks& run_tasks);
template void bucket_svm_tiles(const BucketSvmTiles<double>& p, const Tasks& run_tasks);

}  // namespace mach
