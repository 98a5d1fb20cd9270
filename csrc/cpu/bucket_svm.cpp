#include "bucket_svm.h"

#include "numeric.h"

namespace mach {
namespace {

constexpr int64_t kAhead = 8;  // non-zeros whose row of w is asked for before it is needed

// Fixed sequence, so that the result is the same on every run (SplitMix64).
inline uint64_t next_random(uint64_t& state) {
  uint64_t z = state += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

inline void shuffle(int32_t* order, int64_t count, uint64_t& state) {
  for (int64_t i = count - 1; i > 0; --i) {
    const int64_t j = static_cast<int64_t>(next_random(state) % static_cast<uint64_t>(i + 1));
    const int32_t kept = order[i];
    order[i] = order[j];
    order[j] = kept;
  }
}

// The tile's buckets. (GCC does not make vectors of these loops by itself.)
template <class T>
using Lanes = Vector<T, kSvmTile>;

// z [kSvmTile] = sum_f x_f w[f]. Four sums, for one would wait for its own additions.
template <class T>
inline void scores(const BucketSvm<T>& p, const T* w, int64_t n, T* z) {
  const auto* row = reinterpret_cast<const Lanes<T>*>(w);
  Lanes<T> sum[4] = {};
  const int64_t end = p.indptr[n + 1];
  int64_t e = p.indptr[n];
  for (; e + 4 <= end; e += 4) {
    // What lies behind the document's end is the next one's: needed soon, too.
    for (int64_t u = e + kAhead; u < e + kAhead + 4; ++u)
      if (u < p.indptr[p.N]) __builtin_prefetch(row + p.indices[u]);
    sum[0] += p.values[e] * row[p.indices[e]];
    sum[1] += p.values[e + 1] * row[p.indices[e + 1]];
    sum[2] += p.values[e + 2] * row[p.indices[e + 2]];
    sum[3] += p.values[e + 3] * row[p.indices[e + 3]];
  }
  for (; e < end; ++e) sum[0] += p.values[e] * row[p.indices[e]];
  *reinterpret_cast<Lanes<T>*>(z) = (sum[0] + sum[1]) + (sum[2] + sum[3]) + row[p.D];
}

}  // namespace

template <class Isa, class T>
int64_t bucket_svm(const BucketSvm<T>& p, const SvmScratch<T>& s) {
  constexpr T kInfinity = __builtin_inff();
  const T diagonal = T(0.5) / p.C;
  auto* const w = reinterpret_cast<Lanes<T>*>(s.w);
  alignas(64) T highest[kSvmTile], lowest[kSvmTile], limit[kSvmTile], z[kSvmTile], step[kSvmTile];
  for (T& each : limit) each = kInfinity;
  for (int64_t n = 0; n < p.N; ++n) s.order[n] = static_cast<int32_t>(n);
  uint64_t random = 0;
  int64_t active = p.N;
  for (int64_t pass = 1; pass <= p.max_passes; ++pass) {
    shuffle(s.order, active, random);
    for (int64_t j = 0; j < kSvmTile; ++j) lowest[j] = kInfinity, highest[j] = -kInfinity;
    for (int64_t i = 0; i < active;) {
      const int64_t n = s.order[i];
      T* const alpha = s.alpha + n * kSvmTile;
      const uint32_t positives = s.positives[n];
      const T inverse = T(1) / (p.squares[n] + diagonal);
      scores(p, s.w, n, z);
      bool moved = false, idle = true;
      for (int64_t j = 0; j < kSvmTile; ++j) {
        const T y = ((positives >> j) & 1u) ? T(1) : T(-1);
        const bool used = (s.used >> j) & 1u;
        const T gradient = y * z[j] - T(1) + alpha[j] * diagonal;
        const bool free = alpha[j] != T(0);
        // The projected gradient: at 0, alpha can only grow.
        const T projected = used & (free | (gradient < T(0))) ? gradient : T(0);
        const T target = alpha[j] - projected * inverse;
        const T changed = target > T(0) ? target : T(0);
        step[j] = (changed - alpha[j]) * y;
        alpha[j] = changed;
        lowest[j] = projected < lowest[j] ? projected : lowest[j];
        highest[j] = projected > highest[j] ? projected : highest[j];
        moved |= step[j] != T(0);
        idle &= !(used & (free | !(gradient > limit[j])));
      }
      if (idle) {
        s.order[i] = s.order[--active];
        s.order[active] = static_cast<int32_t>(n);
        continue;
      }
      ++i;
      if (!moved) continue;
      const Lanes<T> by = reinterpret_cast<const Lanes<T>&>(step);
      for (int64_t e = p.indptr[n]; e < p.indptr[n + 1]; ++e) w[p.indices[e]] += p.values[e] * by;
      w[p.D] += by;
    }
    T widest = 0;
    for (int64_t j = 0; j < kSvmTile; ++j) {
      const T width = highest[j] - lowest[j];
      widest = width > widest ? width : widest;
      limit[j] = highest[j] > T(0) ? highest[j] : kInfinity;
    }
    if (widest <= p.tolerance) {
      if (active == p.N) return pass;
      active = p.N;  // all of them once more
      for (T& each : limit) each = kInfinity;
    }
  }
  return p.max_passes + 1;
}

#define MACH_BUCKET_SVM(ISA, T) \
  template int64_t bucket_svm<ISA, T>(const BucketSvm<T>&, const SvmScratch<T>&);
MACH_INSTANTIATE_FLOATING(MACH_BUCKET_SVM)

}  // namespace mach
