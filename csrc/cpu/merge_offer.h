// Computes exact keys of a document's labels, offers them to its TopK, and writes the k best.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "extremes.h"
#include "memory.h"
#include "merge_scores.h"
#include "merge_topk.h"
#include "topk.h"

namespace mach {

constexpr int64_t kBlock = 2048;  // labels whose exact keys are computed together
constexpr int64_t kPairs = 1024;  // exact keys computed together

// The same for documents whose scores do not fit into the second-level cache. The scores of a repetition then
// serve many labels before those of the next repetition replace them in the cache.
constexpr int64_t kLongBlock = 1 << 15;
template <class T>
int64_t block_labels(const MergeScores<T>& p) {
  return p.R * p.B * static_cast<int64_t>(sizeof(T)) > (1 << 20) ? kLongBlock : kBlock;
}

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Where a run of labels [begin, end) is cut into `parts` for as many threads.
inline int64_t cut(int64_t begin, int64_t end, int64_t parts, int64_t i) {
  return begin + (end - begin) * i / parts;
}

// The candidates of several TopK of one document, which hold labels of disjoint ranges.
template <class T>
Array<Candidate<T>> first_k(Array<TopK<T>*> parts, int64_t k) {
  Array<Candidate<T>> all;
  for (TopK<T>* part : parts) {
    const Array<Candidate<T>>& kept = part->kept();
    all.insert(all.end(), kept.begin(), kept.end());
  }
  if (static_cast<int64_t>(all.size()) > k) {
    std::nth_element(all.begin(), all.begin() + (k - 1), all.end());
    all.resize(k);
  }
  std::sort(all.begin(), all.end());
  return all;
}

// Offers the exact keys of labels [begin, end) of document n.
template <class Isa, class T>
void offer_all(const MergeScores<T>& p, int64_t n, int64_t begin, int64_t end, T* keys, T* sorted,
               int32_t* positions, TopK<T>& top) {
  const int64_t block = block_labels(p);
  int64_t count;
  for (int64_t label = begin; label < end; label += count) {
    // Few labels first, for a threshold to hold the others against.
    count = std::min({block, end - label, top.has_threshold() ? block : top.wants()});
    merge_labels<Isa>(p, n, label, count, keys, sorted);
    if constexpr (std::is_same_v<T, float>) {
      const float threshold = key_of<float>(top.threshold());
      if (top.has_threshold() && threshold == threshold) {
        const int64_t found = find_above<Isa>(keys, count, threshold, positions, count);
        for (int64_t i = 0; i < found; ++i) top.offer(keys[positions[i]], label + positions[i]);
        continue;
      }
    }
    for (int64_t i = 0; i < count; ++i) top.offer(keys[i], label + i);
    top.compact();
  }
}

template <class T>
void write_result(const MergeTopK<T>& p, int64_t n, const Array<Candidate<T>>& best) {
  Array<T> sorted(p.merge.R);
  for (int64_t i = 0; i < p.k; ++i) {
    int64_t& label = p.labels[n * p.k + i];
    T& value = p.values[n * p.k + i];
    label = best[i].label;
    value = key_of<T>(best[i].rank);
    if (value == 0 || value != value) {  // the rank has lost the sign of -0 and NaN's bits
      MergeScores<T> document = p.merge;
      document.scores += n * p.merge.document_stride;
      with_isa<T>(
          [&](auto isa) { merge_scores<decltype(isa)>(document, &label, 1, &value, sorted.data(), 0, 1); });
    }
  }
}

}  // namespace mach
