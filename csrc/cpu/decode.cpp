#include "decode.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <utility>

#include "memory.h"
#include "merge_topk.h"
#include "topk.h"

namespace mach {
namespace {

constexpr int64_t kBlock = 2048;  // labels whose exact keys are computed together
constexpr int64_t kGroup = 8;     // documents that share a block's codes while they are in the cache
constexpr int64_t kWidth = 64;    // documents in a scan
constexpr int64_t kChunk = 256;   // documents planned together, at most; fewer where their scores are large
constexpr int64_t kChunkBytes = 12 << 20;  // of scores planned together: exact keys find them in the cache
constexpr int64_t kTableBytes = 12 << 20;  // of byte tables, for scans that go through the codes together
constexpr int64_t kTile = 1 << 16;         // labels between two updates of a scan's bounds
constexpr int64_t kJudged = 4096;          // labels of a tile from which on it is asked whether a scan pays
constexpr int64_t kPairs = 1024;           // exact keys computed together
constexpr int64_t kSums = 1 << 19;  // labels of the lists path's sums: they stay in the second-level cache
constexpr int64_t kLanes = 16;

// ns on one core (Zen 4, AVX-512); only their ratios matter, and only for speed. Fitted to the forced paths'
// times (bench_decode.py, test_paths): the scores of models trained on wordnet and eurlex57k, logits and
// probabilities, and peaky, soft and flat ones of 4K to 3M labels, N = 1 ... 256, k = 5 and 100.
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
double row_cost(int64_t table_bytes) {  // a row of the byte table, by where the table lies
  const int64_t kib = table_bytes >> 10;
  return kib <= 768 ? 0.5 : kib <= 1536 ? 0.75 : kib <= 4096 ? 1.3 : kib <= 24576 ? 2.0 : 4.0;
}

// The same where a document's scores don't fit the second-level cache: then each repetition's scores should
// serve many labels before those of the next one take their place.
constexpr int64_t kLongBlock = 1 << 15;
template <class T>
int64_t block_labels(const MergeScores<T>& p) {
  return p.R * p.B * static_cast<int64_t>(sizeof(T)) > (1 << 20) ? kLongBlock : kBlock;
}

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Memory that is read all over: on huge pages where the system has them, so that addresses are cheap to find;
// kept from use to use, so that they are made once. What is never touched (table_rows()) takes no memory.
class Table {
 public:
  uint8_t* of(int64_t bytes) {
    if (bytes > size_) {
      constexpr int64_t kHuge = 2 << 20;
      size_ = (bytes + kHuge - 1) / kHuge * kHuge;
      memory_.reset();
      memory_.reset(static_cast<uint8_t*>(std::aligned_alloc(kHuge, size_)));
      if (memory_ == nullptr) throw NotEnoughMemory(std::exchange(size_, 0), "a table");
#if defined(__linux__)
      madvise(memory_.get(), size_, MADV_HUGEPAGE);
#endif
    }
    return memory_.get();
  }

  void release_large() {
    if (size_ <= kTableBytes + kMaxCodes * kWidth) return;
    memory_.reset();
    size_ = 0;
  }

 private:
  std::unique_ptr<uint8_t, Free> memory_;
  int64_t size_ = 0;
};

// The calling thread's, kept from call to call unless it is large.
Table& own_table() {
  thread_local Table table;
  return table;
}

// Where a run of labels [begin, end) is cut into `parts` for as many threads.
int64_t cut(int64_t begin, int64_t end, int64_t parts, int64_t i) {
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
void write_result(const Decode<T>& p, int64_t n, const Array<Candidate<T>>& best) {
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

// A task is a group of documents times a range of labels; inside it a block's codes, in the cache, serve
// every document of the group.
template <class T>
void decode_direct(const Decode<T>& p, const Array<int64_t>& documents) {
  const int64_t N = documents.size(), L = p.merge.L, groups = (N + kGroup - 1) / kGroup;
  const int64_t block = block_labels(p.merge), blocks = (L + block - 1) / block;
  // Enough tasks for all threads even when there is one document; ranges are whole blocks.
  const int64_t ranges = std::min(blocks, groups >= p.threads ? 1 : (p.threads + groups - 1) / groups);
  Array<TopK<T>> top(N * ranges, TopK<T>(p.k));
  with_isa<T>([&](auto isa) {
    p.run_tasks(groups * ranges, [&](int64_t task) {
      const int64_t group = task / ranges, range = task % ranges;
      const int64_t first = group * kGroup, last = std::min(N, first + kGroup);
      const int64_t end = std::min(L, blocks * (range + 1) / ranges * block);
      Array<T> keys(block), sorted(p.merge.R);
      Array<int32_t> positions(block);
      for (int64_t label = blocks * range / ranges * block; label < end; label += block)
        for (int64_t i = first; i < last; ++i)
          offer_all<decltype(isa)>(p.merge, documents[i], label, std::min(end, label + block), keys.data(),
                                   sorted.data(), positions.data(), top[i * ranges + range]);
    });
  });
  p.run_tasks(groups, [&](int64_t group) {
    for (int64_t i = group * kGroup; i < std::min(N, (group + 1) * kGroup); ++i) {
      Array<TopK<T>*> parts;
      for (int64_t range = 0; range < ranges; ++range) parts.push_back(&top[i * ranges + range]);
      write_result(p, documents[i], ranges == 1 ? parts[0]->take() : first_k<T>(parts, p.k));
      if (p.trace) p.trace[documents[i] * kTraceColumns + kTraceRescored] = L;
    }
  });
}

// ------------------------------------------------------------------------------------------- the paths

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

  // Slack: a label whose fp32 key reaches theta has a sum of scores, in exact arithmetic, of at least
  // R theta - slack(theta). With u = 2^-24 the fp32 sum errs by at most (R - 1) u / (1 - ...) times the sum
  // of the magnitudes, the division by one more rounding. For a sum s of scores that are at most `high` the
  // magnitudes add up to 2 * (sum of the positive ones) - s. The factor 4 is more than enough for
  // second-order terms, the last term for results below the least normal number.
  double slack(int64_t R, double theta) const {
    return (R + 4) * 0x1p-22 * (2 * slack_high + R * std::abs(theta)) + R * 1e-44;
  }
  // Sum of scores that a label needs at least for a key of theta.
  double wanted(int64_t R, double theta) const { return R * theta - slack(R, theta); }
  double wanted(int64_t R) const { return wanted(R, theta()); }
};

// A document, by its place among some, and a label of it.
struct Pair {
  int32_t slot, label;
};

// Of one thread, from document to document.
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

class Decoder {
 public:
  explicit Decoder(const Decode<float>& p) : p_(p), m_(p.merge) {
    // How many labels are scored exactly before anything else, for a first threshold.
    // Fewer of few labels where a path is asked for, so that it has something to do.
    const int64_t usual = std::max<int64_t>(128, 4 * p.k);
    sample_ = p.path == Path::automatic ? std::min(m_.L, usual)
                                        : std::min({m_.L, usual, std::max({int64_t(8), p.k, m_.L / 16})});
    possible_ = p.index != nullptr && sample_ < m_.L && m_.R <= 250;  // sums of bytes
  }

  void run() {
    const int64_t fit = kChunkBytes / (m_.R * m_.B * static_cast<int64_t>(sizeof(float)));
    const int64_t size = std::clamp(fit / kWidth * kWidth, kWidth, kChunk);
    for (int64_t begin = 0; begin < p_.N; begin += size) chunk(begin, std::min(p_.N, begin + size));
  }

 private:
  void chunk(int64_t begin, int64_t end) {
    Array<int64_t> direct;
    Array<Document> planned;
    together_ = std::min(kWidth, end - begin);
    scan_cost_ = scan_cost(together_);
    direct_cost_ = direct_cost(together_);
    const bool worth_a_plan =
        possible_ && p_.path != Path::direct &&
        (p_.path != Path::automatic ||
         (plan_cost() < 0.7 * direct_cost_ && (scan_cost_ < direct_cost_ || lists_may_pay(direct_cost_))));
    if (worth_a_plan) {
      planned.resize(end - begin);
      // In several chunks: one alone would not pay for the memory.
      if (m_.merge == Merge::mean && 4 * m_.R * m_.B <= kNearScores && p_.N >= 2 * (end - begin)) {
        uint8_t* bytes = bytes_.of((end - begin) * m_.R * m_.B);
        for (int64_t i = 0; i < end - begin; ++i) planned[i].bytes = bytes + i * m_.R * m_.B;
      }
      const int64_t parts = std::min(end - begin, 4 * p_.threads);
      p_.run_tasks(parts, [&](int64_t part) {
        Scratch scratch(m_);
        for (int64_t n = cut(begin, end, parts, part); n < cut(begin, end, parts, part + 1); ++n)
          plan(n, planned[n - begin], scratch);
      });
    }
    Array<Document*> scan, lists;
    for (int64_t n = begin; n < end; ++n) {
      Document* document = worth_a_plan ? &planned[n - begin] : nullptr;
      if (document == nullptr || document->path == Path::direct)
        direct.push_back(n);
      else
        (document->path == Path::lists ? lists : scan).push_back(document);
    }
    // A scan costs about as much for a few documents as for 64.
    const int64_t left = std::min<int64_t>(kWidth, scan.size());
    if (p_.path == Path::automatic && left > 0 && left < together_) {
      const double others = std::min(scan_cost(left), direct_cost(left));
      const auto to_lists = std::stable_partition(
          scan.begin(), scan.end(), [&](const Document* document) { return document->lists_cost >= others; });
      for (auto document = to_lists; document < scan.end(); ++document) (*document)->path = Path::lists;
      lists.insert(lists.end(), to_lists, scan.end());
      scan.erase(to_lists, scan.end());
    }
    if (!lists.empty()) run_lists(lists);
    for (Document* document : lists)
      if (document->path == Path::scan) scan.push_back(document);  // gave up
    const int64_t rest = std::min<int64_t>(kWidth, scan.size());
    if (p_.path == Path::automatic && rest > 0 && scan_cost(rest) > direct_cost(rest)) {
      for (Document* document : scan) {
        document->path = Path::direct;
        direct.push_back(document->n);
      }
      scan.clear();
    }
    // Documents with like thresholds together: a label is dropped when none of a scan's documents wants it.
    std::stable_sort(scan.begin(), scan.end(), [](const Document* a, const Document* b) {
      return a->from_low != b->from_low ? a->from_low : a->depth() < b->depth();
    });
    const int64_t together =
        kWidth * std::clamp<int64_t>(kTableBytes / (m_.R * m_.B * kWidth), 1, kChunk / kWidth);
    for (size_t i = 0; i < scan.size(); i += together)
      run_scan({scan.begin() + i, scan.begin() + std::min<size_t>(scan.size(), i + together)});
    for (const Document* document : scan)
      if (document->path == Path::direct) direct.push_back(document->n);
    if (!direct.empty()) run_direct(direct);
    if (p_.trace)
      for (const Document& document : planned)
        if (document.path != Path::direct) {
          int64_t* row = p_.trace + document.n * kTraceColumns;
          row[kTracePath] = static_cast<int64_t>(document.path);
          row[kTracePostings] = document.postings;
          row[kTraceRescored] = document.rescored;
        }
  }

  // ------------------------------------------------------------------------------------------- the plan

  // ns a document
  double key_cost() const {  // an exact key's arithmetic beside its loads
    return m_.merge == Merge::mean ? 1 : m_.merge == Merge::min ? 2 : 4 + m_.R / 8.0;
  }
  // Labels that come to be among the first k, of random order.
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

  // Beside a path of this cost; many of few labels don't stand out by their best buckets.
  bool lists_may_pay(double cost) const {
    return cost > (together_ <= kFew ? kListsFrom : kListsFromMany) &&
           p_.k <= std::max(m_.L / 4096, std::min(kRaiseUpTo, m_.L / 256));
  }

  void plan(int64_t n, Document& d, Scratch& scratch) const {
    d.n = n;
    const bool mean = m_.merge == Merge::mean;
    const bool lists_pay =
        mean && (p_.path == Path::lists ||
                 (p_.path == Path::automatic && lists_may_pay(std::min(scan_cost_, direct_cost_))));
    with_isa<float>([&](auto isa) {
      using Tag = decltype(isa);
      if (mean && !find_extremes<Tag>(d, lists_pay)) return;
      d.top = TopK<float>(p_.k);
      offer_all<Tag>(m_, n, 0, sample_, scratch.keys.data(), scratch.sorted.data(), scratch.positions.data(),
                     d.top);
      d.top.compact();
      d.rescored = sample_;
      if (!std::isfinite(d.theta())) return;  // fewer than k finite keys in the sample
      if (mean) {
        if (p_.path != Path::automatic || (p_.k <= kRaiseUpTo && scan_cost_ > kRaiseFrom) ||
            d.down(m_.R) > 4 * d.up(m_.R))
          raise_threshold<Tag>(d, scratch);
        // Nothing to prune by: sums that can't be told apart from their bounds.
        if (!(d.sum_high - d.sum_low > 8 * d.slack(m_.R, d.theta()))) return;
        // Bytes count steps below `high`; or, where the threshold is far nearer to `low` (some score far
        // above all others would make those steps useless), above `low`.
        d.from_low = d.up(m_.R) > 0 && d.down(m_.R) > 16 * d.up(m_.R);
        d.unit = std::max(d.from_low ? d.up(m_.R) / 160 : d.down(m_.R) / 250, 1e-30);
      }
      if (lists_pay) plan_lists(d);
      d.path = d.lists_cost < others_cost(d) ? Path::lists : Path::scan;
      if (d.path == Path::lists)
        d.bytes = nullptr;
      else if (d.bytes != nullptr)  // now, while the scores are in the cache
        for (int64_t r = 0; r < m_.R; ++r) quantize_mean<Tag>(d, r, d.bytes + r * m_.B);
    });
  }

  // What the lists path must stay below.
  double others_cost(const Document& d) const {
    if (p_.path == Path::lists) return kNever;
    // A label's score lies on average about two thirds down from high to low; it is dropped at the threshold.
    const double share = std::min(1.0, 1.5 * d.depth() + 1.0 / m_.R);
    const double cost = std::min(scan_cost(together_, share), direct_cost_);
    return together_ <= kFew ? cost : kSaved * cost;
  }

  const float* scores(int64_t n, int64_t r) const {
    return m_.scores + n * m_.document_stride + r * m_.repetition_stride;
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
      if (!lane_extremes<Tag>(scores(d.n, r), m_.B, low, high)) return false;
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
    const float* row = scores(d.n, r);
    const int64_t count = find_above<Tag>(row, m_.B, d.least_heavy[r], found, kRoom);
    if (count == kRoom) d.least_heavy[r] = kInfinity;  // not all of them: of no use as a bound
    for (int64_t i = 0; i < count; ++i) heavy.push_back({static_cast<int32_t>(r), found[i], row[found[i]]});
  }

  struct Labels {
    const int32_t *first, *last;
    const int32_t* begin() const { return first; }
    const int32_t* end() const { return last; }
    int64_t size() const { return last - first; }
  };
  // Within the repetition's labels, whatever its starts say (label_index.h). The labels themselves are
  // checked where they are used.
  Labels labels_of(const Heavy& h) const {
    const int32_t* starts = p_.index->list_starts + h.repetition * (m_.B + 1) + h.bucket;
    const int32_t* labels = p_.index->list_labels + h.repetition * m_.L;
    const auto end = static_cast<int32_t>(m_.L);
    const int32_t first = std::clamp(starts[0], 0, end), last = std::clamp(starts[1], first, end);
    return {labels + first, labels + last};
  }

  bool is_label(int32_t label) const { return static_cast<uint32_t>(label) < static_cast<uint32_t>(m_.L); }

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
      while (last < end && (taken += labels_of(*last).size()) <= enough) ++last;
      best.erase(last, best.end());
    }
  }

  // Labels that are in two of scratch.best at least, ascending, to scratch.labels.
  void find_repeated(Scratch& scratch) const {
    Array<int32_t>& labels = scratch.labels;
    labels.clear();
    scratch.seen.resize((m_.L + 63) / 64);  // a bit a label, all 0 again at the end
    int64_t marked = 0;
    for (const Heavy& h : scratch.best) {
      marked += labels_of(h).size();
      for (int32_t label : labels_of(h)) {
        if (!is_label(label)) continue;
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
        for (int32_t label : labels_of(h))
          if (is_label(label)) scratch.seen[label / 64] = 0;
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
    labels.erase(labels.begin(), std::lower_bound(labels.begin(), labels.end(), sample_));
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

  // The lists path's best tau, if it is possible: the same height above `low` in all repetitions, but nowhere
  // under `least_heavy`, below which no buckets are known.
  void plan_lists(Document& d) const {
    const int64_t R = m_.R, L = m_.L;
    const double wanted = d.wanted(R);
    double magnitude = 0;  // doubles must resolve the gap
    for (int64_t r = 0; r < R; ++r)
      magnitude += std::abs(d.low[r]) + std::abs(d.high[r]) + std::abs(d.least_heavy[r]);
    const int64_t blocks = (L - sample_ + kSums - 1) / kSums;
    constexpr int kBins = 16;
    constexpr std::array<double, 5> kPowers = {4, 8, 12, 18, 27};
    static const auto chernoff = [&] {
      std::array<std::array<double, kBins + 1>, kPowers.size()> table;
      for (size_t s = 0; s < kPowers.size(); ++s)
        for (int i = 0; i <= kBins; ++i)
          table[s][i] = std::expm1(kPowers[s] * std::min(1.0, (i + 0.5) / kBins));
      return table;
    }();
    Array<double> tau(R);
    for (double height : {0.0, 0.5, 0.75, 0.9}) {
      double gap = wanted;
      for (int64_t r = 0; r < R; ++r) {
        tau[r] = std::max<double>(d.least_heavy[r], d.low[r] + height * (wanted - d.sum_low) / R);
        gap -= tau[r];
      }
      if (!(gap > 1e-8 * magnitude)) continue;
      // Postings by excess over tau, in shares of the gap.
      double postings[kBins + 1] = {}, all = 0, lists = 0;
      for (const Heavy& h : d.heavy) {
        const double excess = h.score - tau[h.repetition];
        if (excess <= 0) continue;
        const double count = static_cast<double>(labels_of(h).size());
        postings[static_cast<int>(std::min(1.0, excess / gap) * kBins)] += count;
        all += count;
        ++lists;
      }
      // Candidates to expect of random buckets, by Chernoff's bound: for any s >= 0
      // P(sum_r excess_r >= gap) <= exp(-s gap) * prod_r E exp(s excess_r); it is four to thirty times too
      // high.
      double candidates = L;
      for (size_t s = 0; s < chernoff.size(); ++s) {
        double exponent = -kPowers[s];
        for (int i = 0; i <= kBins; ++i) exponent += postings[i] / L * chernoff[s][i];
        candidates = std::min(candidates, L * std::exp(exponent));
      }
      const double cost = all * kPostingCost + lists * blocks * kSegmentCost + L * kSweepCost +
                          (candidates / kChernoff + 2 * p_.k) * pair_cost();
      if (cost < d.lists_cost) d.lists_cost = cost, d.gap = gap * (1 - 1e-6), d.tau = tau;
    }
  }

  // ------------------------------------------------------------------------------------------ the direct

  void run_direct(const Array<int64_t>& documents) {
    const int64_t count = documents.size(), groups = (count + kSumLanes - 1) / kSumLanes;
    const bool possible = p_.index != nullptr && m_.merge == Merge::mean && sample_ < m_.L;
    // Each thread takes groups of its own where that leaves none idle for long; else all work on one group.
    const bool apart = p_.threads > 1 && (groups % p_.threads == 0 || groups >= 4 * p_.threads);
    const int64_t runs = apart ? p_.threads : 1;
    const Team alone{[](int64_t tasks, const auto& task) {
                       for (int64_t i = 0; i < tasks; ++i) task(i);
                     },
                     1};
    const Team team = apart ? alone : Team{p_.run_tasks, p_.threads};
    Array<Array<int64_t>> others(runs);
    const auto run = [&](int64_t i) {
      for (int64_t group = cut(0, groups, runs, i); group < cut(0, groups, runs, i + 1); ++group) {
        const int64_t* first = &documents[group * kSumLanes];
        const int64_t some = std::min<int64_t>(kSumLanes, count - group * kSumLanes);
        if (possible && sums_cost() < some * alone_cost(some))
          sum_together(first, some, team, others[i]);
        else
          others[i].insert(others[i].end(), first, first + some);
      }
      own_table().release_large();
    };
    if (apart)
      p_.run_tasks(runs, run);
    else
      run(0);
    for (int64_t i = 1; i < runs; ++i) others[0].insert(others[0].end(), others[i].begin(), others[i].end());
    if (!others[0].empty()) decode_direct(p_, others[0]);
  }

  struct Team {
    Tasks run_tasks;
    int64_t threads;
  };

  // Up to 16 documents at a time: one addition for all of them, in the order of the definition. A document
  // for which `above` can't be said (fewer than k keys that are numbers in the sample) goes to `others`.
  void sum_together(const int64_t* documents, int64_t count, const Team& team, Array<int64_t>& others) const {
    const int64_t R = m_.R, B = m_.B, L = m_.L;
    float* table = reinterpret_cast<float*>(own_table().of(table_rows(R * B, B) * kSumLanes * sizeof(float)));
    with_isa<float>([&](auto isa) {
      using Tag = decltype(isa);
      team.run_tasks(R, [&](int64_t r) {
        const float* rows[kSumLanes] = {};
        for (int64_t i = 0; i < count; ++i) rows[i] = scores(documents[i], r);
        interleave_scores<Tag>(rows, B, table + r * B * kSumLanes);
      });
      Array<TopK<float>> sample(count, TopK<float>(p_.k));
      team.run_tasks(count, [&](int64_t i) {
        Scratch scratch(m_);
        offer_all<Tag>(m_, documents[i], 0, sample_, scratch.keys.data(), scratch.sorted.data(),
                       scratch.positions.data(), sample[i]);
        sample[i].compact();
      });
      const int64_t parts = std::max<int64_t>(1, std::min(team.threads, (L - sample_) / 1024));
      Array<TopK<float>> top(parts * count, TopK<float>(p_.k));
      team.run_tasks(parts, [&](int64_t part) {
        TopK<float>* tops = &top[part * count];
        for (int64_t i = 0; i < count; ++i) tops[i].require_above(sample[i].threshold());
        sum_range<Tag>(table, count, cut(sample_, L, parts, part), cut(sample_, L, parts, part + 1), tops);
      });
      for (int64_t i = 0; i < count; ++i)
        if (std::isnan(key_of<float>(sample[i].threshold()))) others.push_back(documents[i]);
      team.run_tasks(count, [&](int64_t i) {
        if (std::isnan(key_of<float>(sample[i].threshold()))) return;
        Array<TopK<float>*> all{&sample[i]};
        for (int64_t part = 0; part < parts; ++part) all.push_back(&top[part * count + i]);
        write_result(p_, documents[i], first_k<float>(all, p_.k));
        if (p_.trace) p_.trace[documents[i] * kTraceColumns + kTraceRescored] = L;
      });
    });
  }

  template <class Tag>
  void sum_range(const float* table, int64_t count, int64_t begin, int64_t end, TopK<float>* top) const {
    const auto labels = uninitialized<int32_t>(kBlock + 1);
    const auto documents = uninitialized<uint32_t>(kBlock + 1);
    const auto sums = uninitialized<float>((kBlock + 1) * kSumLanes);
    float above[kSumLanes];
    int64_t block = kBlock / 8;  // at first the thresholds rise fast
    for (int64_t first = begin; first < end; first += block, block = std::min(kBlock, 2 * block)) {
      for (int64_t i = 0; i < kSumLanes; ++i) above[i] = i < count ? sum_above(top[i]) : kInfinity;
      const int64_t found =
          sum_labels<Tag>(table, p_.index->codes, m_.R, m_.B, first, std::min(end, first + block), above,
                          labels.get(), documents.get(), sums.get());
      drop_unknown<Tag>(p_.index->codes, m_.R, m_.B, labels.get(), found, documents.get());
      for (int64_t j = 0; j < found; ++j)
        for (uint32_t left = documents[j]; left; left &= left - 1) {
          const int i = __builtin_ctz(left);
          top[i].offer(sums[j * kSumLanes + i] / static_cast<float>(m_.R), labels[j]);
        }
    }
  }

  // Sums up to this one have keys up to the threshold.
  float sum_above(const TopK<float>& top) const {
    const float key = key_of<float>(top.threshold());
    if (!std::isfinite(key)) return std::isnan(key) ? kInfinity : key;
    const double sum = static_cast<double>(key) * m_.R;
    // Half a unit in the last place of the key, and more.
    const double lower = sum - std::abs(sum) * 1e-6 - m_.R * 1e-44;
    constexpr float kGreatest = std::numeric_limits<float>::max();  // a sum that overflows is above
    return lower >= kGreatest ? kGreatest : std::nextafter(static_cast<float>(lower), -kInfinity);
  }

  // ------------------------------------------------------------------------------------------- the lists

  void run_lists(const Array<Document*>& documents) {
    const int64_t count = documents.size();
    const int64_t parts = count >= p_.threads ? 1 : p_.threads;
    Array<TopK<float>> top(count * parts, TopK<float>(p_.k));
    Array<int64_t> postings(count * parts), rescored(count * parts);
    Array<uint8_t> gave_up(count * parts);
    const int64_t tasks = std::min(count * parts, 4 * p_.threads);
    p_.run_tasks(tasks, [&](int64_t task) {
      Scratch scratch(m_);
      for (int64_t i = cut(0, count * parts, tasks, task); i < cut(0, count * parts, tasks, task + 1); ++i) {
        const Document& d = *documents[i / parts];
        top[i].require_above(d.top.threshold());
        with_isa<float>([&](auto isa) {
          gave_up[i] = !go_through_lists<decltype(isa)>(d, cut(sample_, m_.L, parts, i % parts),
                                                        cut(sample_, m_.L, parts, i % parts + 1), scratch,
                                                        top[i], postings[i], rescored[i]);
        });
      }
    });
    p_.run_tasks(count, [&](int64_t i) {
      Document& d = *documents[i];
      Array<TopK<float>*> all{&d.top};
      for (int64_t part = 0; part < parts; ++part) {
        all.push_back(&top[i * parts + part]);
        d.postings += postings[i * parts + part];
        d.rescored += rescored[i * parts + part];
        if (gave_up[i * parts + part]) d.path = Path::scan;
      }
      if (d.path == Path::lists) write_result(p_, d.n, first_k<float>(all, p_.k));
    });
  }

  // False where so many candidates came that another path is cheaper: buckets that are not like random.
  template <class Tag>
  bool go_through_lists(const Document& d, int64_t begin, int64_t end, Scratch& scratch, TopK<float>& top,
                        int64_t& postings, int64_t& rescored) const {
    constexpr int kReach = 200;  // sum of a label that could be among the first k
    struct Cursor {
      const int32_t *next, *last;
      int amount;
    };
    Array<Cursor> cursors;
    for (const Heavy& h : d.heavy) {
      const double excess = h.score - d.tau[h.repetition];
      if (excess <= 0) continue;
      auto [first, last] = labels_of(h);
      if (begin > sample_)
        first = std::lower_bound(first, last, static_cast<int32_t>(begin));
      else
        while (first < last && *first < begin) ++first;
      // Rounded up: never less than the excess in steps of gap / kReach.
      const double steps = excess / d.gap * kReach;
      if (first < last) cursors.push_back({first, last, steps < 254 ? static_cast<int>(steps) + 1 : 255});
    }
    const int64_t size = std::min(kSums, end - begin);
    scratch.sums.resize(std::max<size_t>(scratch.sums.size(), size), 0);  // all 0 again at the end
    scratch.positions.resize(std::max<size_t>(scratch.positions.size(), size + 1));
    uint8_t* sums = scratch.sums.data();
    int32_t* positions = scratch.positions.data();
    for (int64_t first = begin; first < end; first += size) {
      const int64_t stop = std::min(end, first + size);
      for (Cursor& c : cursors) {
        const int64_t added = add_saturating<Tag>(c.next, c.last - c.next, first, stop, sums, c.amount);
        c.next += added;
        postings += added;
      }
      const int64_t found = take_at_least<Tag>(sums, stop - first, kReach - 1, positions);
      rescored += found;
      if (p_.path == Path::automatic && rescored * pair_cost() > 2 * std::min(scan_cost_, direct_cost_))
        return false;
      Array<Pair>& pairs = scratch.pairs;
      pairs.resize(found);
      for (int64_t i = 0; i < found; ++i) pairs[i] = {0, static_cast<int32_t>(first + positions[i])};
      const Document* document = &d;
      offer_pairs<Tag>(pairs, &document, &top);
    }
    return true;
  }

  // Offers the exact keys of the pairs, a slot's labels ascending, to the TopK of their slots.
  template <class Tag>
  void offer_pairs(const Array<Pair>& pairs, const Document* const* documents, TopK<float>* top) const {
    const int64_t count = pairs.size(), most = std::min(kPairs, count);
    Array<int32_t> ids(most), labels(most);
    Array<float> keys(most), sorted(m_.R);
    for (int64_t begin = 0; begin < count; begin += kPairs) {
      const int64_t some = std::min(kPairs, count - begin);
      for (int64_t i = 0; i < some; ++i) {
        ids[i] = static_cast<int32_t>(documents[pairs[begin + i].slot]->n);
        labels[i] = pairs[begin + i].label;
      }
      merge_pairs<Tag>(m_, p_.index->codes, ids.data(), labels.data(), some, keys.data(), sorted.data());
      for (int64_t i = 0; i < some; ++i) top[pairs[begin + i].slot].offer(keys[i], labels[i]);
    }
  }

  // -------------------------------------------------------------------------------------------- the scan

  void run_scan(const Array<Document*>& documents) {
    switch (lanes_for(documents.size())) {
      case 16:
        return run_scan<16>(documents);
      case 32:
        return run_scan<32>(documents);
      default:
        return run_scan<64>(documents);
    }
  }

  // Blocks of W documents, each with a table of its own; they go through the labels together, tile by tile,
  // so that the codes come from memory once.
  template <int W>
  void run_scan(const Array<Document*>& documents) {
    const int64_t count = documents.size(), R = m_.R, B = m_.B, L = m_.L, blocks = (count + W - 1) / W;
    uint8_t* tables = own_table().of(table_rows(blocks * R * B, B) * W);
    with_isa<float>([&](auto isa) {
      using Tag = decltype(isa);
      const auto fill = [&] {
        p_.run_tasks(blocks * R, [&](int64_t task) {
          const int64_t first = task / R * W, r = task % R;
          fill_table<Tag, W>(documents.data() + first, std::min<int64_t>(W, count - first), r,
                             tables + (task / R * R + r) * B * W);
        });
      };
      const bool mean = m_.merge == Merge::mean;
      if (mean) fill();
      for (int64_t begin = sample_, end; begin < L; begin = end) {
        end = std::min(L, round_growth() * begin);
        if (!mean) fill();  // these bytes depend on the threshold: renewed as it rises
        const int64_t parts = std::max<int64_t>(1, std::min(p_.threads, (end - begin) / 1024));
        Array<TopK<float>> top(parts * count, TopK<float>(p_.k));
        Array<int64_t> rescored(parts * count);
        Array<uint8_t> hopeless(parts * count, 0);
        p_.run_tasks(parts, [&](int64_t part) {
          const ScanRange range{begin,
                                cut(begin, end, parts, part),
                                cut(begin, end, parts, part + 1),
                                count,
                                documents.data(),
                                tables,
                                &top[part * count],
                                &rescored[part * count],
                                &hopeless[part * count]};
          scan_range<Tag, W>(range);
        });
        p_.run_tasks(count, [&](int64_t i) {
          Document& d = *documents[i];
          for (int64_t part = 0; part < parts; ++part) {
            d.top.absorb(top[part * count + i].kept());
            d.rescored += rescored[part * count + i];
            if (hopeless[part * count + i]) d.path = Path::direct;
          }
          if (end == L && d.path == Path::scan) write_result(p_, d.n, d.top.take());
        });
      }
    });
  }

  template <class Tag>
  void quantize_mean(const Document& d, int64_t r, uint8_t* bytes) const {
    const float steps = static_cast<float>(1 / d.unit);
    quantize<Tag>(scores(d.n, r), m_.B, d.from_low ? d.low[r] : d.high[r], d.from_low ? steps : -steps,
                  bytes);
  }

  template <class Tag, int W>
  void fill_table(Document* const* documents, int64_t count, int64_t r, uint8_t* rows) const {
    const int64_t B = m_.B, stride = (B + 127) / 64 * 64 | 64;  // odd in cache lines: no two columns collide
    const auto columns = uninitialized<uint8_t>(W * stride);
    std::memset(columns.get() + count * stride, 0, (W - count) * stride);
    for (int64_t i = 0; i < count; ++i) {
      const Document& d = *documents[i];
      uint8_t* column = columns.get() + i * stride;
      if (d.bytes != nullptr)
        std::memcpy(column, d.bytes + r * B, B);
      else if (m_.merge == Merge::mean)
        quantize_mean<Tag>(d, r, column);
      else  // whether the score is below theta. The mean of two scores from there on may overflow.
        quantize<Tag>(scores(d.n, r), B, static_cast<float>(std::min(d.theta(), 0x1p126)), 0, column);
    }
    transpose_bytes<Tag, W>(columns.get(), stride, B, rows);
  }

  // The bound on document d's sums for threshold theta; `below`: sums below it are wanted.
  uint8_t bound_for(const Document& d, const TopK<float>& top) const {
    const int64_t R = m_.R;
    if (m_.merge != Merge::mean) {
      // How many scores may lie below theta: none (min); fewer than half, so that the middle one, or the
      // upper of the middle two, does not (median).
      return static_cast<uint8_t>(m_.merge == Merge::min ? 1 : R / 2 + 1);
    }
    constexpr double kRounding = 1e-3;  // of the bytes' fp32 arithmetic: 255 * 2^-22 a score
    const double wanted = d.wanted(R, key_of<float>(top.threshold()));
    double bound;
    if (d.from_low)  // each floor may have lost a step
      bound = std::floor((wanted - d.sum_low) / d.unit - R - kRounding * R);
    else
      bound = std::floor((d.sum_high - wanted) / d.unit + kRounding * R) + 1;
    return static_cast<uint8_t>(std::min(255.0, std::max(0.0, bound)));
  }

  // A scan's rounds, between which the threads tell each other their best: from one to the next the labels
  // gone through grow so many fold. Apart, each thread has its own k best, and with a large k most of the
  // labels that get exact keys come from their being found; where a threshold was looked for before, or there
  // is one thread, one round is enough.
  int64_t round_growth() const {
    if (m_.merge != Merge::mean) return 8;
    return p_.threads == 1 || p_.k <= kRaiseUpTo ? m_.L : 2;
  }

  struct ScanRange {
    int64_t known;       // labels that the thresholds are of
    int64_t begin, end;  // labels
    int64_t count;
    Document* const* documents;  // [count]
    const uint8_t* tables;       // [count / W rounded up, R, B, W]
    TopK<float>* top;            // [count]
    int64_t* rescored;           // [count]
    uint8_t* hopeless;           // [count], set where a document is better off with the direct path
  };

  template <class Tag, int W>
  void scan_range(const ScanRange& range) const {
    const int64_t blocks = (range.count + W - 1) / W;
    // For a slot without a document, or one that is hopeless: sums below 0.
    Array<uint8_t> bounds(blocks * W, 0);
    const auto set_bound = [&](int64_t i) {
      bounds[i] = range.hopeless[i] ? 0 : bound_for(*range.documents[i], range.top[i]);
    };
    for (int64_t i = 0; i < range.count; ++i) {
      range.top[i].require_above(range.documents[i]->top.threshold());
      range.hopeless[i] = range.documents[i]->path != Path::scan;  // by an earlier round
      set_bound(i);
    }
    // Not initialised: a vector would write all of them before they are used.
    const int64_t room = std::min(kTile, range.end - range.begin) + 1;
    const auto labels = uninitialized<int32_t>(room);
    const auto wanted = uninitialized<uint64_t>(room);
    const auto sums = uninitialized<uint8_t>(room * W);
    Array<Pair> pairs;
    uint8_t* hopeless = range.hopeless;
    int64_t tile = std::clamp(range.known / 2, int64_t(256), kTile);
    for (int64_t first = range.begin; first < range.end; first += tile, tile = std::min(kTile, 2 * tile)) {
      const int64_t last = std::min(range.end, first + tile);
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t slot = block * W, count = std::min<int64_t>(W, range.count - slot);
        if (std::all_of(hopeless + slot, hopeless + slot + count, [](uint8_t h) { return h; })) continue;
        Document* const* documents = range.documents + slot;
        ByteScan scan = block_scan<W>(range, block, bounds.data() + slot, hopeless);
        // Sums only grow: a label that nobody wants after some repetitions need not get the others.
        scan.end = first_stage<Tag, W>(scan, first, last);
        int64_t found = scan_labels<Tag, W>(scan, first, last, labels.get(), wanted.get(), sums.get());
        if (scan.end < m_.R) {
          scan.begin = scan.end;
          scan.end = m_.R;
          found = scan_again<Tag, W>(scan, found, labels.get(), wanted.get(), sums.get());
        }
        // By document, so that one document's scores serve all its labels from the cache.
        int64_t next[W + 1] = {};
        for (int64_t i = 0; i < found; ++i)
          for (uint64_t left = wanted[i]; left; left &= left - 1) ++next[__builtin_ctzll(left) + 1];
        for (int w = 0; w < W; ++w) next[w + 1] += next[w];
        pairs.resize(next[W]);
        for (int64_t i = 0; i < found; ++i)
          for (uint64_t left = wanted[i]; left; left &= left - 1) {
            const int w = __builtin_ctzll(left);
            pairs[next[w]++] = {w, labels[i]};
          }
        TopK<float>* top = range.top + slot;
        offer_pairs<Tag>(pairs, documents, top);
        // Where many labels stay, as with equal scores, the bounds cost more than they save.
        for (int64_t i = 0; i < count; ++i) {
          const int64_t stayed = next[i] - (i ? next[i - 1] : 0);
          range.rescored[slot + i] += stayed;
          // As many more may come each time that the labels gone through double; direct starts again.
          const double to_come = stayed * std::log2(static_cast<double>(m_.L) / last);
          if (p_.path == Path::automatic && tile >= kJudged && to_come * pair_cost() > direct_cost_)
            hopeless[slot + i] = 1;
          if (static_cast<int64_t>(top[i].kept().size()) >= p_.k + p_.k / 4 + 4) top[i].compact();
          set_bound(slot + i);
        }
      }
    }
  }

  template <int W>
  ByteScan block_scan(const ScanRange& range, int64_t block, const uint8_t* bounds,
                      const uint8_t* hopeless) const {
    ByteScan scan{range.tables + block * m_.R * m_.B * W,
                  p_.index->codes,
                  m_.R,
                  m_.B,
                  bounds,
                  ~uint64_t(0) >> (64 - W),
                  0,
                  m_.R};
    for (int64_t i = block * W; i < std::min((block + 1) * W, range.count); ++i)
      if (range.documents[i]->from_low && !hopeless[i]) scan.below &= ~(uint64_t(1) << (i % W));
    return scan;
  }

  // How many repetitions to add before the labels are looked at for the first time: the cheapest number by a
  // few labels' example.
  template <class Tag, int W>
  int64_t first_stage(const ByteScan& scan, int64_t begin, int64_t end) const {
    constexpr double kAgain = 8;  // ns to take a label up again
    if (scan.below != (~0ull >> (64 - W))) return m_.R;
    const int64_t count = std::min<int64_t>(64, (end - begin) / 4);
    if (count == 0) return m_.R;
    Array<int64_t> alive(m_.R, 0);
    count_alive<Tag, W>(scan, begin, begin + count, alive.data());
    const double row = row_cost(m_.R * m_.B * W);
    double best = m_.R * row;
    int64_t stage = m_.R;
    for (int64_t r = 1; r < m_.R; ++r) {
      const double left = static_cast<double>(alive[r - 1]) / count;
      const double cost = r * row_cost(r * m_.B * W) + left * (kAgain + (m_.R - r) * row * 1.3);
      if (cost < best) best = cost, stage = r;
    }
    return stage;
  }

  const Decode<float>& p_;
  const MergeScores<float>& m_;
  int64_t sample_ = 0;
  bool possible_ = false;
  Table bytes_;
  int64_t together_ = 1;                    // documents of the present chunk that could share a scan,
  double scan_cost_ = 0, direct_cost_ = 0;  // and a document's cost with so many
};

}  // namespace

void decode(const Decode<float>& p) {
  Decoder(p).run();
  own_table().release_large();
}

void decode(const Decode<double>& p) {
  Array<int64_t> documents(p.N);
  for (int64_t n = 0; n < p.N; ++n) documents[n] = n;
  decode_direct(p, documents);
}

}  // namespace mach
