// Exact top-k of a stream of (key, label) in the one order of this project: key descending, then label
// ascending; -0 equals +0; a NaN key comes after every number. Plain code, compiled once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace mach {

// An unsigned integer that orders like the key: 0 for NaN, then -inf ... +inf.
template <class T>
inline auto rank_of(T key) {
  using U = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  constexpr U kSign = U(1) << (8 * sizeof(T) - 1);
  if (key != key) return U(0);
  key += T(0);  // -0 -> +0
  U bits;
  std::memcpy(&bits, &key, sizeof bits);
  return bits & kSign ? U(~bits) : U(bits | kSign);
}

template <class T>
struct Candidate {
  decltype(rank_of(T())) rank;
  int32_t label;
  bool operator<(const Candidate& other) const {  // "comes before"
    return rank != other.rank ? rank > other.rank : label < other.label;
  }
};

// Keeps the first k of what it is offered. Holds at most 2k + kSlack candidates; each compaction halves
// them, so an offer costs O(1) amortised. Labels must be offered in ascending order.
template <class T>
class TopK {
 public:
  explicit TopK(int64_t k) : k_(k) {}

  void offer(const T* keys, int64_t label_begin, int64_t count) {
    if (k_ == 0) return;
    for (int64_t i = 0; i < count; ++i) {
      const auto rank = rank_of(keys[i]);
      // An equal rank loses: its label is higher than that of the k-th.
      if (full_ && rank <= threshold_) continue;
      kept_.push_back({rank, static_cast<int32_t>(label_begin + i)});
      if (static_cast<int64_t>(kept_.size()) >= 2 * k_ + kSlack) compact();
    }
  }

  // The first k in order (fewer if fewer were offered).
  std::vector<Candidate<T>> take() {
    compact();
    std::sort(kept_.begin(), kept_.end());
    return std::move(kept_);
  }

 private:
  static constexpr int64_t kSlack = 256;

  void compact() {
    if (static_cast<int64_t>(kept_.size()) < k_ || k_ == 0) return;
    std::nth_element(kept_.begin(), kept_.begin() + (k_ - 1), kept_.end());
    kept_.resize(k_);
    threshold_ = kept_.back().rank;
    full_ = true;
  }

  int64_t k_;
  bool full_ = false;
  decltype(rank_of(T())) threshold_ = 0;
  std::vector<Candidate<T>> kept_;
};

}  // namespace mach
