#include "bucket_svm.h"

#include "bucket_svm_lanes.h"

namespace mach {
namespace {

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

}  // namespace

template <class Isa, class T>
SvmResult bucket_svm(const BucketSvm<T>& p, const SvmScratch<T>& s) {
  constexpr T kInfinity = __builtin_inff();
  const T diagonal = T(0.5) / p.C;
  auto* const w = reinterpret_cast<Lanes<T>*>(s.w);
  alignas(64) T highest[kSvmTile], lowest[kSvmTile], limit[kSvmTile], step[kSvmTile];
  Lanes<T> z;
  T widest = kInfinity;
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
      const T scale = p.scales[n];
      svm_scores<Isa, T>(p, w, n, z);
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
        const T violation = projected * scale;
        lowest[j] = violation < lowest[j] ? violation : lowest[j];
        highest[j] = violation > highest[j] ? violation : highest[j];
        moved |= step[j] != T(0);
        idle &= !(used & (free | !(gradient * scale > limit[j])));
      }
      if (idle) {
        s.order[i] = s.order[--active];
        s.order[active] = static_cast<int32_t>(n);
        continue;
      }
      ++i;
      if (!moved) continue;
      svm_add_document<Isa, T>(p, n, reinterpret_cast<const Lanes<T>&>(step), w);
    }
    widest = 0;
    for (int64_t j = 0; j < kSvmTile; ++j) {
      const T width = highest[j] - lowest[j];
      widest = width > widest ? width : widest;
      limit[j] = highest[j] > T(0) ? highest[j] : kInfinity;
    }
    if (widest <= p.tolerance) {
      if (active == p.N) return {pass, widest};
      active = p.N;  // all of them once more
      for (T& each : limit) each = kInfinity;
    }
  }
  return {p.max_passes, widest};
}

#define MACH_BUCKET_SVM(ISA, T) \
  template SvmResult bucket_svm<ISA, T>(const BucketSvm<T>&, const SvmScratch<T>&);
MACH_INSTANTIATE_FLOATING(MACH_BUCKET_SVM)

}  // namespace mach
