// The cost model by which merge_topk chooses a path.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "merge_direct_kernels.h"
#include "merge_topk.h"

namespace mach {

constexpr int64_t kGroup = 8;  // documents that share a block's codes while they are in the cache

// Costs are in ns on a core (Zen 4, AVX-512). Only their ratios matter, and only for speed. They were fitted
// to the times of each path (bench_merge_topk.py, test_paths). The scores came from models trained on wordnet
// and eurlex57k, as logits and as probabilities. Others were peaky, soft and flat, for 4K to 3M labels, N = 1
// ... 256, k = 5 and 100.
constexpr double kDirectCost = 0.35;      // a score of a label, path direct
constexpr double kBucketsFar = 0.3;       // the same, more where the buckets come from memory
constexpr double kPairCost = 1.5;         // a score of a label, where labels are far apart
constexpr double kPairOverhead = 25;      // a label that is far from others
constexpr double kQuantizeCost = 0.15;    // a score, into the byte table
constexpr double kScoresFar = 0.3;        // the same, more where the scores come from memory
constexpr double kInterleaveCost = 0.7;   // a score, into the table of sums
constexpr double kSumRow = 0.7;           // a row of sums, in rows of bytes
constexpr double kOfferCost = 40;         // a label that is among the first k for a while, path direct
constexpr double kSurvivors = 5;          // labels that get an exact key in a scan, beside those
constexpr double kExtremesCost = 0.1;     // a score, its extremes
constexpr double kPostingCost = 2;        // a label in a list
constexpr double kSegmentCost = 60;       // a list in a block of labels
constexpr double kSweepCost = 0.025;      // a label's sum
constexpr double kRaiseCost = 5e3;        // a document: looking for a better threshold
constexpr double kRaiseFrom = 8e3;        // a document: less is not worth that
constexpr int64_t kRaiseUpTo = 32;        // k: more are not found in a few buckets
constexpr double kListsFrom = 60e3;       // a document: less is not worth planning the lists path for
constexpr double kListsFromMany = 200e3;  // the same where more than kFew documents could share a scan
constexpr int64_t kFew = 8;
constexpr double kSaved =
    0.6;  // of what a document costs that shares a scan: what the scan is cheaper without
constexpr double kChernoff = 8;  // candidates by Chernoff's bound / those that came
constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr int64_t kNearScores = 512 << 10;  // bytes of a document, that stay in the second-level cache
constexpr int64_t kFarBuckets = 24 << 20, kFarScores = 8 << 20;  // bytes
inline double row_cost(int64_t table_bytes) {  // a row of the byte table, by where the table lies
  const int64_t kib = table_bytes >> 10;
  return kib <= 768 ? 0.5 : kib <= 1536 ? 0.75 : kib <= 4096 ? 1.3 : kib <= 24576 ? 2.0 : 4.0;
}

class MergeCosts {
 public:
  MergeCosts(const MergeTopK<float>& p, int64_t sample) : p_(p), m_(p.merge), sample_(sample) {}

  // Sets the three fields below for a chunk in which so many documents could share a scan.
  void set_together(int64_t documents) {
    together = documents;
    scan = scan_cost(documents);
    direct = direct_cost(documents);
  }

  // ns a document
  double key_cost() const {  // an exact key's arithmetic beside its loads
    return m_.merge == Merge::mean ? 1 : m_.merge == Merge::min ? 2 : 4 + m_.R / 8.0;
  }
  // How often a label enters the first k while labels come in random order.
  double firsts() const { return p_.k * std::log2(static_cast<double>(m_.L) / sample_); }
  double alone_cost(int64_t documents) const {
    const double far = 4 * m_.L * m_.R > kFarBuckets ? kBucketsFar / std::min(kGroup, documents) : 0;
    return static_cast<double>(m_.L) * m_.R * (kDirectCost * key_cost() + far);
  }
  double sums_cost() const {  // of up to 16 documents together
    const int64_t table = m_.R * m_.B * kSumLanes;
    return table * kInterleaveCost + m_.L * m_.R * kSumRow * row_cost(4 * table);
  }
  double direct_cost(int64_t documents) const {
    const double alone = alone_cost(documents),
                 together = sums_cost() / std::min<int64_t>(documents, kSumLanes);
    return (m_.merge == Merge::mean ? std::min(alone, together) : alone) + firsts() * kOfferCost;
  }
  double pair_cost() const { return kPairOverhead + m_.R * kPairCost * key_cost(); }
  double plan_cost() const {
    return sample_ * m_.R * kDirectCost * key_cost() + static_cast<double>(m_.R) * m_.B * kExtremesCost;
  }
  static int64_t lanes_for(int64_t documents) { return documents <= 16 ? 16 : documents <= 32 ? 32 : 64; }
  double scan_cost(int64_t documents, double share = 1) const {  // share of a label's rows that are added
    const int64_t lanes = lanes_for(documents), table = m_.R * m_.B * lanes;
    const double quantize = kQuantizeCost + (4 * p_.N * m_.R * m_.B > kFarScores ? kScoresFar : 0);
    return plan_cost() + (p_.k <= kRaiseUpTo ? kRaiseCost : 0) +
           (table * quantize + share * m_.L * m_.R * row_cost(table)) / documents +
           kSurvivors * firsts() * pair_cost();
  }

  // Whether the lists path may be cheaper than a path of this cost. If k is large beside L, the first k
  // labels do not stand out by their best buckets.
  bool lists_may_pay(double cost) const {
    return cost > (together <= kFew ? kListsFrom : kListsFromMany) &&
           p_.k <= std::max(m_.L / 4096, std::min(kRaiseUpTo, m_.L / 256));
  }

  int64_t together = 1;         // documents of the present chunk that could share a scan,
  double scan = 0, direct = 0;  // and a document's cost with so many

 private:
  const MergeTopK<float>& p_;
  const MergeScores<float>& m_;
  int64_t sample_;
};

}  // namespace mach
