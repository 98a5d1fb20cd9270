#include "merge_plan.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "extremes.h"
#include "merge_lists.h"
#include "merge_scan.h"

namespace mach {
namespace {

constexpr int64_t kLanes = 16;

class Plan {
 public:
  explicit Plan(const MergeRun& run) : run_(run), p_(run.call), m_(run.call.merge), costs_(run.costs) {}

  void plan(int64_t n, Document& d, Scratch& scratch) const {
    d.n = n;
    const bool mean = m_.merge == Merge::mean;
    const bool lists_pay =
        mean && (p_.path == Path::lists ||
                 (p_.path == Path::automatic && costs_.lists_may_pay(std::min(costs_.scan, costs_.direct))));
    with_isa<float>([&](auto isa) {
      using Tag = decltype(isa);
      if (mean && !find_extremes<Tag>(d, lists_pay)) return;
      d.top = TopK<float>(p_.k);
      offer_all<Tag>(m_, n, 0, run_.sample, scratch.keys.data(), scratch.sorted.data(),
                     scratch.positions.data(), d.top);
      d.top.compact();
      d.rescored = run_.sample;
      if (!std::isfinite(d.theta())) return;  // fewer than k finite keys in the sample
      if (mean) {
        if (p_.path != Path::automatic || (p_.k <= kRaiseUpTo && costs_.scan > kRaiseFrom) ||
            d.down(m_.R) > 4 * d.up(m_.R))
          raise_threshold<Tag>(d, scratch);
        // Nothing to prune by: sums that can't be told apart from their bounds.
        if (!(d.sum_high - d.sum_low > 8 * d.slack(m_.R, d.theta()))) return;
        // Bytes count steps below `high`; or, where the threshold is far nearer to `low` (some score far
        // above all others would make those steps useless), above `low`.
        d.from_low = d.up(m_.R) > 0 && d.down(m_.R) > 16 * d.up(m_.R);
        d.unit = std::max(d.from_low ? d.up(m_.R) / 160 : d.down(m_.R) / 250, 1e-30);
      }
      if (lists_pay) mach::plan_lists(run_, d);
      d.path = d.lists_cost < others_cost(d) ? Path::lists : Path::scan;
      if (d.path == Path::lists)
        d.bytes = nullptr;
      else if (d.bytes != nullptr)  // now, while the scores are in the cache
        for (int64_t r = 0; r < m_.R; ++r) quantize_mean<Tag>(run_, d, r, d.bytes + r * m_.B);
    });
  }

 private:
  // What the lists path must stay below.
  double others_cost(const Document& d) const {
    if (p_.path == Path::lists) return kNever;
    // A label's score lies on average about two thirds down from high to low; it is dropped at the threshold.
    const double share = std::min(1.0, 1.5 * d.depth() + 1.0 / m_.R);
    const double cost = std::min(costs_.scan_cost(costs_.together, share), costs_.direct);
    return costs_.together <= kFew ? cost : kSaved * cost;
  }

  // False where bounds by sums of scores would not hold: NaN, +inf, sums that could overflow, or distances:
  // the least float less 1e30 is still the least float.
  template <class Tag>
  bool find_extremes(Document& d, bool find_heavy) const {
    d.high.resize(m_.R);
    d.low.resize(m_.R);
    d.least_heavy.resize(m_.R);
    for (int64_t r = 0; r < m_.R; ++r) {
      float low[kLanes], high[kLanes];
      if (!lane_extremes<Tag>(run_.scores(d.n, r), m_.B, low, high)) return false;
      const int64_t lanes = std::min(kLanes, m_.B);
      d.high[r] = *std::max_element(high, high + lanes);
      d.least_heavy[r] = *std::min_element(high, high + lanes);
      d.low[r] = std::max(*std::max_element(low, low + lanes), -1e30f);
      d.sum_high += d.high[r];
      d.sum_low += d.low[r];
      d.slack_high += std::max(d.high[r], 0.0f);
      if (find_heavy) this->find_heavy<Tag>(d, r, d.heavy);  // now, while the row is in the cache
    }
    return std::isfinite(d.sum_high) && d.slack_high < 1e30;
  }

  // Appends the buckets above least_heavy.
  template <class Tag>
  void find_heavy(Document& d, int64_t r, Array<Heavy>& heavy) const {
    constexpr int64_t kRoom = 256;
    int32_t found[kRoom];
    const float* row = run_.scores(d.n, r);
    const int64_t count = find_above<Tag>(row, m_.B, d.least_heavy[r], found, kRoom);
    if (count == kRoom) d.least_heavy[r] = kInfinity;  // not all of them: of no use as a bound
    for (int64_t i = 0; i < count; ++i) heavy.push_back({static_cast<int32_t>(r), found[i], row[found[i]]});
  }

  // The document's best buckets in a few repetitions, of at most some labels each, to scratch.best.
  template <class Tag>
  void find_best(Document& d, Scratch& scratch) const {
    const int64_t R = m_.R, repetitions = std::min<int64_t>(4, R), buckets = std::max<int64_t>(10, p_.k + 4);
    const int64_t enough = std::clamp<int64_t>(m_.L / 64, 256, 8192);  // labels of a repetition
    const bool found_before = !d.heavy.empty();
    Array<Heavy>& best = scratch.best;
    best.clear();
    auto heavy = d.heavy.cbegin();  // its repetitions ascend
    for (int64_t i = 0; i < repetitions; ++i) {
      const int64_t r = R * i / repetitions, begin = best.size();
      if (found_before) {
        for (; heavy < d.heavy.cend() && heavy->repetition <= r; ++heavy)
          if (heavy->repetition == r) best.push_back(*heavy);
      } else {
        find_heavy<Tag>(d, r, best);
      }
      const auto first = best.begin() + begin, end = first + std::min<int64_t>(buckets, best.end() - first);
      std::partial_sort(first, end, best.end(),
                        [](const Heavy& a, const Heavy& b) { return a.score > b.score; });
      int64_t taken = 0;
      auto last = first;
      while (last < end && (taken += run_.labels_of(*last).size()) <= enough) ++last;
      best.erase(last, best.end());
    }
  }

  // LabelList that are in two of scratch.best at least, ascending, to scratch.labels.
  void find_repeated(Scratch& scratch) const {
    Array<int32_t>& labels = scratch.labels;
    labels.clear();
    scratch.seen.resize((m_.L + 63) / 64);  // a bit a label, all 0 again at the end
    int64_t marked = 0;
    for (const Heavy& h : scratch.best) {
      marked += run_.labels_of(h).size();
      for (int32_t label : run_.labels_of(h)) {
        if (!run_.is_label(label)) continue;
        uint64_t& word = scratch.seen[label / 64];
        const uint64_t bit = uint64_t(1) << (label % 64);
        if (word & bit) labels.push_back(label);
        word |= bit;
      }
    }
    if (marked > static_cast<int64_t>(scratch.seen.size()) / 8)
      std::fill(scratch.seen.begin(), scratch.seen.end(), 0);
    else
      for (const Heavy& h : scratch.best)
        for (int32_t label : run_.labels_of(h))
          if (run_.is_label(label)) scratch.seen[label / 64] = 0;
    std::sort(labels.begin(), labels.end());
    labels.erase(std::unique(labels.begin(), labels.end()), labels.end());
  }

  // A better threshold than the sample's: the exact keys of the labels that are in the document's best
  // buckets in at least two of a few repetitions. Those best in many are usually among them.
  template <class Tag>
  void raise_threshold(Document& d, Scratch& scratch) const {
    find_best<Tag>(d, scratch);
    find_repeated(scratch);
    Array<int32_t>& labels = scratch.labels;
    labels.erase(labels.begin(), std::lower_bound(labels.begin(), labels.end(), run_.sample));
    const int64_t count = std::min<int64_t>(labels.size(), 1024 + 4 * p_.k);
    Array<float> keys(count), sorted(m_.R);
    const Array<int32_t> documents(count, static_cast<int32_t>(d.n));
    merge_pairs<Tag>(m_, p_.index->codes, documents.data(), labels.data(), count, keys.data(), sorted.data());
    d.rescored += count;
    Array<Rank<float>> ranks;
    for (float key : keys) ranks.push_back(rank_of(key));
    for (const Candidate<float>& c : d.top.kept()) ranks.push_back(c.rank);
    if (static_cast<int64_t>(ranks.size()) < p_.k) return;
    std::nth_element(ranks.begin(), ranks.begin() + (p_.k - 1), ranks.end(), std::greater<>());
    // These labels come again: those of an equal rank must not be lost.
    const Rank<float> kth = ranks[p_.k - 1];
    if (kth > rank_of(-kInfinity)) d.top.require_above(kth - 1);
  }

  const MergeRun& run_;
  const MergeTopK<float>& p_;
  const MergeScores<float>& m_;
  const MergeCosts& costs_;
};

}  // namespace

void plan_document(const MergeRun& run, int64_t n, Document& d, Scratch& scratch) {
  Plan(run).plan(n, d, scratch);
}

}  // namespace mach
