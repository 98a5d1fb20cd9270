// The state of one call of merge_topk in fp32 and of its documents, which the plan and the paths share.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "memory.h"
#include "merge_costs.h"
#include "merge_offer.h"
#include "merge_scores.h"
#include "merge_topk.h"
#include "topk.h"

namespace mach {

// A bucket with one of its repetition's greatest scores.
struct Heavy {
  int32_t repetition, bucket;
  float score;
};

// What is known of a document before its labels are gone through.
struct Document {
  int64_t n = 0;
  Path path = Path::direct;
  TopK<float> top{1};  // the sample's labels [0, sample), later those of the scan, too
  Array<float> high;   // [R] greatest score
  Array<float> low;    // [R] a low score: the greatest of 16 lanes' least, so that outliers don't count
  double sum_high = 0, sum_low = 0, slack_high = 0;
  bool from_low = false;     // scan: bytes count up from low, not down from high
  double unit = 1;           // scan: score units a step of the final sum
  Array<Heavy> heavy;        // all buckets above `least_heavy`, where they were looked for
  Array<float> least_heavy;  // [R] the least of 16 lanes' greatest scores: some 50 buckets are above it
  Array<double> tau;         // [R] lists
  double gap = 0;            // lists: what the excesses over tau must add up to
  double lists_cost = kNever;
  uint8_t* bytes = nullptr;  // [R, B] scan: the scores in bytes, where that was done in the plan
  int64_t postings = 0, rescored = 0;

  double down(int64_t R) const { return sum_high - wanted(R); }
  double up(int64_t R) const { return wanted(R) - sum_low; }

  double depth() const {  // of the threshold, between high and low
    return sum_high <= sum_low ? 0 : (sum_high - theta() * high.size()) / (sum_high - sum_low);
  }

  double theta() const { return key_of<float>(top.threshold()); }

  // Slack: if the fp32 key of a label reaches theta, its sum of scores in exact arithmetic is at least R
  // theta - slack(theta). With u = 2^-24, the fp32 sum errs by at most (R - 1) u / (1 - ...) times the sum of
  // the magnitudes. The division adds one more rounding. For a sum s of scores that are at most `high`, the
  // magnitudes add up to 2 * (sum of the positive scores) - s. The factor 4 is more than enough for
  // second-order terms. The last term covers results below the least normal number.
  double slack(int64_t R, double theta) const {
    return (R + 4) * 0x1p-22 * (2 * slack_high + R * std::abs(theta)) + R * 1e-44;
  }
  // The sum of scores that a label must have for a key of theta.
  double wanted(int64_t R, double theta) const { return R * theta - slack(R, theta); }
  double wanted(int64_t R) const { return wanted(R, theta()); }
};

// A label of a document, where `slot` is the document's number in a block.
struct Pair {
  int32_t slot, label;
};

// Scratch memory of a thread, reused from document to document.
struct Scratch {
  explicit Scratch(const MergeScores<float>& p)
      : keys(block_labels(p)), sorted(p.R), positions(block_labels(p)) {}
  Array<float> keys, sorted;
  Array<int32_t> positions, labels;
  Array<Heavy> best;
  Array<Pair> pairs;
  Array<uint64_t> seen;
  Array<uint8_t> sums;
};

// The labels of a bucket, as its list has them.
struct LabelList {
  const int32_t *first, *last;
  const int32_t* begin() const { return first; }
  const int32_t* end() const { return last; }
  int64_t size() const { return last - first; }
};

// One call of merge_topk in fp32.
struct MergeRun {
  const MergeTopK<float>& call;
  int64_t sample;  // labels that are scored exactly before anything else, for a first threshold
  MergeCosts costs;

  const float* scores(int64_t n, int64_t r) const {
    const MergeScores<float>& m = call.merge;
    return m.scores + n * m.document_stride + r * m.repetition_stride;
  }

  // Within the repetition's labels, whatever its starts say (label_index.h). The labels themselves are
  // checked where they are used.
  LabelList labels_of(const Heavy& h) const {
    const int32_t* starts = call.index->list_starts + h.repetition * (call.merge.B + 1) + h.bucket;
    const int32_t* labels = call.index->list_labels + h.repetition * call.merge.L;
    const auto end = static_cast<int32_t>(call.merge.L);
    const int32_t first = std::clamp(starts[0], 0, end), last = std::clamp(starts[1], first, end);
    return {labels + first, labels + last};
  }

  bool is_label(int32_t label) const {
    return static_cast<uint32_t>(label) < static_cast<uint32_t>(call.merge.L);
  }

  // Offers the exact keys of the pairs, a slot's labels ascending, to the TopK of their slots.
  template <class Tag>
  void offer_pairs(const Array<Pair>& pairs, const Document* const* documents, TopK<float>* top) const {
    const int64_t count = pairs.size(), most = std::min(kPairs, count);
    Array<int32_t> ids(most), labels(most);
    Array<float> keys(most), sorted(call.merge.R);
    for (int64_t begin = 0; begin < count; begin += kPairs) {
      const int64_t some = std::min(kPairs, count - begin);
      for (int64_t i = 0; i < some; ++i) {
        ids[i] = static_cast<int32_t>(documents[pairs[begin + i].slot]->n);
        labels[i] = pairs[begin + i].label;
      }
      merge_pairs<Tag>(call.merge, call.index->codes, ids.data(), labels.data(), some, keys.data(),
                       sorted.data());
      for (int64_t i = 0; i < some; ++i) top[pairs[begin + i].slot].offer(keys[i], labels[i]);
    }
  }
};

}  // namespace mach
