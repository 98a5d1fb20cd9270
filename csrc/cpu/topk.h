// Exact top-k of a stream of (key, label) in the one order of this project: key descending, then label
// ascending; -0 equals +0; a NaN key comes after every number. Plain code, compiled once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "memory.h"

namespace mach {

template <class T>
using Rank = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

// An unsigned integer that orders like the key: 0 for NaN, then -inf ... +inf.
template <class T>
inline Rank<T> rank_of(T key) {
  using U = Rank<T>;
  constexpr U kSign = U(1) << (8 * sizeof(T) - 1);
  if (key != key) return U(0);
  key += T(0);  // -0 -> +0
  U bits;
  std::memcpy(&bits, &key, sizeof bits);
  return bits & kSign ? U(~bits) : U(bits | kSign);
}

// The greatest key of at most that rank; NaN for the ranks below that of -inf.
template <class T>
inline T key_of(Rank<T> rank) {
  using U = Rank<T>;
  constexpr U kSign = U(1) << (8 * sizeof(T) - 1);
  if (rank == kSign - 1) --rank;  // that of -0, if it did not count as +0: keys above it are above -0, too
  const U bits = rank & kSign ? U(rank & ~kSign) : U(~rank);
  T key;
  std::memcpy(&key, &bits, sizeof key);
  return key;
}

template <class T>
struct Candidate {
  Rank<T> rank;
  int32_t label;
  bool operator<(const Candidate& other) const {  // "comes before"
    if constexpr (sizeof(T) == 4) {               // one comparison of 64 bits, no branch
      const auto packed = [](const Candidate& c) {
        return static_cast<uint64_t>(c.rank) << 32 | ~static_cast<uint32_t>(c.label);
      };
      return packed(*this) > packed(other);
    } else {
      return rank != other.rank ? rank > other.rank : label < other.label;
    }
  }
};

// Keeps the first k >= 1 of the offered pairs. It holds at most 2k + kSlack candidates. Each compaction
// halves them, so an offer costs O(1) amortised. Labels must be offered in ascending order.
template <class T>
class TopK {
 public:
  explicit TopK(int64_t k) : k_(k) {}

  // From now on only ranks above `rank` count: the caller knows k labels that come before all others.
  void require_above(Rank<T> rank) {
    if (has_threshold_ && rank <= threshold_) return;
    has_threshold_ = true;
    threshold_ = rank;
  }

  // Whether there is a threshold yet, and what it is: keys of a rank up to it are not among the first k.
  bool has_threshold() const { return has_threshold_; }
  Rank<T> threshold() const { return threshold_; }

  int64_t wants() const { return std::max<int64_t>(64, 2 * k_); }  // offers that make a first threshold

  void offer(T key, int64_t label) {
    const Rank<T> rank = rank_of(key);
    // An equal rank loses: its label is higher than that of the k-th.
    if (has_threshold_ && rank <= threshold_) return;
    if (kept_.empty()) kept_.reserve(std::min<int64_t>(2 * k_ + kSlack, 1024));
    kept_.push_back({rank, static_cast<int32_t>(label)});
    if (static_cast<int64_t>(kept_.size()) >= 2 * k_ + kSlack) compact();
  }

  // Brings the threshold up to what was offered so far.
  void compact() {
    if (static_cast<int64_t>(kept_.size()) < k_) return;
    std::nth_element(kept_.begin(), kept_.begin() + (k_ - 1), kept_.end());
    kept_.resize(k_);
    require_above(kept_.back().rank);
  }

  // What was offered, in no order, less what is known not to count.
  const Array<Candidate<T>>& kept() const { return kept_; }

  // Candidates of other labels, in any order.
  void absorb(const Array<Candidate<T>>& others) {
    kept_.insert(kept_.end(), others.begin(), others.end());
    compact();
  }

  // The first k in order (fewer if fewer were offered).
  Array<Candidate<T>> take() {
    compact();
    std::sort(kept_.begin(), kept_.end());
    return std::move(kept_);
  }

 private:
  static constexpr int64_t kSlack = 32;

  int64_t k_;
  bool has_threshold_ = false;
  Rank<T> threshold_ = 0;
  Array<Candidate<T>> kept_;
};

}  // namespace mach
