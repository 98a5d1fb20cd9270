#include "decode.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "merge_topk.h"
#include "topk.h"

namespace mach {
namespace {

constexpr int64_t kBlock = 2048;   // labels whose exact keys are computed together
constexpr int64_t kGroup = 8;      // documents that share a block's codes while they are in the cache
constexpr int64_t kWidth = 64;     // documents in a scan
constexpr int64_t kChunk = 256;    // documents planned together
constexpr int64_t kTile = 1 << 15; // labels between two updates of a scan's bounds
constexpr int64_t kPairs = 1024;   // exact keys computed together
constexpr int64_t kSums = 1 << 19; // labels of the lists path's sums: they stay in the second-level cache
constexpr int64_t kLanes = 16;

// ns, measured on one core (Zen 4, AVX-512); only their ratios matter, and only for speed.
constexpr double kDirectCost = 0.35;    // a score of a label, path direct
constexpr double kPairCost = 1.5;       // the same where labels are far apart
constexpr double kQuantizeCost = 0.15;  // a score, into the byte table
constexpr double kExtremesCost = 0.06;  // a score, its extremes
constexpr double kPostingCost = 1.2;    // a label in a list
constexpr double kSegmentCost = 12;     // a list in a block of labels
constexpr double kSweepCost = 0.03;     // a label's sum
constexpr double kListsFrom = 150e3;    // a document: less is not worth planning the lists path for
double row_cost(int64_t table_bytes) {  // a row of the byte table, by where the table lies
  return table_bytes <= (3 << 20) ? 0.5 : table_bytes <= (24 << 20) ? 1.5 : 4.0;
}

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Where a run of labels [begin, end) is cut into `parts` for as many threads.
int64_t cut(int64_t begin, int64_t end, int64_t parts, int64_t i) {
  return begin + (end - begin) * i / parts;
}

// The candidates of several TopK of one document, which hold labels of disjoint ranges.
template <class T>
std::vector<Candidate<T>> first_k(std::vector<TopK<T>*> parts, int64_t k) {
  std::vector<Candidate<T>> all;
  for (TopK<T>* part : parts) {
    const std::vector<Candidate<T>>& kept = part->kept();
    all.insert(all.end(), kept.begin(), kept.end());
  }
  std::sort(all.begin(), all.end());
  if (static_cast<int64_t>(all.size()) > k) all.resize(k);
  return all;
}

// Offers the exact keys of labels [begin, end) of document n.
template <class Isa, class T>
void offer_all(const MergeScores<T>& p, int64_t n, int64_t begin, int64_t end, T* keys, T* sorted,
               int32_t* positions, TopK<T>& top) {
  for (int64_t label = begin; label < end; label += kBlock) {
    const int64_t count = std::min(kBlock, end - label);
    merge_labels<Isa>(p, n, label, count, keys, sorted);
    if constexpr (std::is_same_v<T, float>) {
      const float threshold = key_of<float>(top.threshold());
      if (top.full() && threshold == threshold) {
        const int64_t found = find_above<Isa>(keys, count, threshold, positions, count);
        for (int64_t i = 0; i < found; ++i) top.offer(keys[positions[i]], label + positions[i]);
        continue;
      }
    }
    for (int64_t i = 0; i < count; ++i) top.offer(keys[i], label + i);
  }
}

template <class T>
void write_result(const Decode<T>& p, int64_t n, const std::vector<Candidate<T>>& best) {
  std::vector<T> sorted(p.merge.R);
  for (int64_t i = 0; i < p.k; ++i) {
    int64_t& label = p.labels[n * p.k + i];
    T& value = p.values[n * p.k + i];
    label = best[i].label;
    value = key_of<T>(best[i].rank);
    if (value == 0 || value != value) {  // the rank has lost the sign of -0 and NaN's bits
      MergeScores<T> document = p.merge;
      document.scores += n * p.merge.document_stride;
      with_isa<T>([&](auto isa) {
        merge_scores<decltype(isa)>(document, &label, 1, &value, sorted.data(), 0, 1);
      });
    }
  }
}

// A task is a group of documents times a range of labels; inside it a block's codes, in the cache, serve
// every document of the group.
template <class T>
void decode_direct(const Decode<T>& p, const std::vector<int64_t>& documents) {
  const int64_t N = documents.size(), L = p.merge.L, groups = (N + kGroup - 1) / kGroup;
  const int64_t blocks = (L + kBlock - 1) / kBlock;
  // Enough tasks for all threads even when there is one document; ranges are whole blocks.
  const int64_t ranges =
      std::min(blocks, groups >= p.threads ? 1 : (p.threads + groups - 1) / groups);
  std::vector<TopK<T>> top(N * ranges, TopK<T>(p.k));
  with_isa<T>([&](auto isa) {
    p.run_tasks(groups * ranges, [&](int64_t task) {
      const int64_t group = task / ranges, range = task % ranges;
      const int64_t first = group * kGroup, last = std::min(N, first + kGroup);
      const int64_t end = std::min(L, blocks * (range + 1) / ranges * kBlock);
      std::vector<T> keys(kBlock), sorted(p.merge.R);
      std::vector<int32_t> positions(kBlock);
      for (int64_t label = blocks * range / ranges * kBlock; label < end; label += kBlock)
        for (int64_t i = first; i < last; ++i)
          offer_all<decltype(isa)>(p.merge, documents[i], label, std::min(end, label + kBlock), keys.data(),
                                   sorted.data(), positions.data(), top[i * ranges + range]);
    });
  });
  p.run_tasks(groups, [&](int64_t group) {
    for (int64_t i = group * kGroup; i < std::min(N, (group + 1) * kGroup); ++i) {
      std::vector<TopK<T>*> parts;
      for (int64_t range = 0; range < ranges; ++range) parts.push_back(&top[i * ranges + range]);
      write_result(p, documents[i], ranges == 1 ? parts[0]->take() : first_k<T>(parts, p.k));
      if (p.trace) p.trace[documents[i] * kTraceColumns + kTraceRescored] = L;
    }
  });
}

// ------------------------------------------------------------------------------------------- the paths

// A bucket whose labels the lists path touches, and what they get.
struct Heavy {
  int64_t repetition;
  int32_t bucket;
  float excess;  // over tau, in scores
};

// What is known of a document before its labels are gone through.
struct Document {
  int64_t n = 0;
  Path path = Path::direct;
  TopK<float> top{1};        // the sample's labels [0, sample), later those of the scan, too
  std::vector<float> high;   // [R] greatest score
  std::vector<float> low;    // [R] a low score: the median of 16 lanes' least, so that outliers don't count
  double sum_high = 0, sum_low = 0, slack_high = 0;
  bool from_low = false;     // scan: bytes count up from low, not down from high
  double unit = 1;           // scan: score units a step of the final sum
  std::vector<Heavy> heavy;  // lists
  double gap = 0;            // lists
  int64_t postings = 0, rescored = 0;

  double theta() const { return key_of<float>(top.threshold()); }

  // Slack: a label whose fp32 key reaches theta has a sum of scores, in exact arithmetic, of at least
  // R theta - slack(theta). With u = 2^-24 the fp32 sum errs by at most (R - 1) u / (1 - ...) times the sum of
  // the magnitudes, the division by one more rounding. For a sum s of scores that are at most `high` the
  // magnitudes add up to 2 * (sum of the positive ones) - s. The factor 4 is more than enough for second-order
  // terms, the last term for results below the least normal number.
  double slack(int64_t R, double theta) const {
    return (R + 4) * 0x1p-22 * (2 * slack_high + R * std::abs(theta)) + R * 1e-44;
  }
  double wanted(int64_t R) const {  // sum of scores that a label needs at least
    const double t = theta();
    return R * t - slack(R, t);
  }
};

class Decoder {
 public:
  explicit Decoder(const Decode<float>& p) : p_(p), m_(p.merge) {
    // How many labels are scored exactly before anything else, for a first threshold.
    sample_ = std::min(m_.L, p.path == Path::automatic ? std::max<int64_t>(1024, 2 * p.k)
                                                       : std::max<int64_t>(8, p.k));
    groups_ = m_.R <= 20 || m_.merge != Merge::mean ? 1 : (m_.R + 15) / 16;
    while ((int64_t(1) << shift_) < groups_) ++shift_;
    possible_ = p.index != nullptr && sample_ < m_.L &&
                (m_.merge == Merge::mean ? shift_ <= 6 : m_.R <= 250);
  }

  void run() {
    for (int64_t begin = 0; begin < p_.N; begin += kChunk) chunk(begin, std::min(p_.N, begin + kChunk));
  }

 private:
  void chunk(int64_t begin, int64_t end) {
    std::vector<int64_t> direct;
    std::vector<Document> planned;
    const int64_t width = std::min(kWidth, end - begin);
    const bool worth_a_plan =
        possible_ && p_.path != Path::direct &&
        (p_.path != Path::automatic ||
         (plan_cost() < 0.7 * direct_cost() && (scan_cost(width) < direct_cost() || direct_cost() > kListsFrom)));
    scan_cost_ = scan_cost(width);
    if (worth_a_plan) {
      planned.resize(end - begin);
      p_.run_tasks(end - begin, [&](int64_t i) { plan(begin + i, planned[i]); });
    }
    std::vector<Document*> scan, lists;
    for (int64_t n = begin; n < end; ++n) {
      Document* document = worth_a_plan ? &planned[n - begin] : nullptr;
      if (document == nullptr || document->path == Path::direct)
        direct.push_back(n);
      else
        (document->path == Path::lists ? lists : scan).push_back(document);
    }
    // A scan costs about as much for a few documents as for 64.
    if (p_.path == Path::automatic && !scan.empty() &&
        scan_cost(std::min<int64_t>(kWidth, scan.size())) > direct_cost()) {
      for (const Document* document : scan) direct.push_back(document->n);
      scan.clear();
    }
    if (!lists.empty()) run_lists(lists);
    for (size_t i = 0; i < scan.size(); i += kWidth)
      run_scan({scan.begin() + i, scan.begin() + std::min(scan.size(), i + kWidth)});
    if (!direct.empty()) decode_direct(p_, direct);
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
  double direct_cost() const { return static_cast<double>(m_.L) * m_.R * kDirectCost * key_cost(); }
  double plan_cost() const {
    return sample_ * m_.R * kDirectCost * key_cost() + static_cast<double>(m_.R) * m_.B * kExtremesCost;
  }
  static int64_t lanes_for(int64_t documents) { return documents <= 16 ? 16 : documents <= 32 ? 32 : 64; }
  double scan_cost(int64_t documents) const {
    const int64_t lanes = lanes_for(documents), table = m_.R * m_.B * lanes;
    const double rescored = 3.0 * p_.k * std::log2(static_cast<double>(m_.L) / sample_);
    return plan_cost() + (table * kQuantizeCost + m_.L * m_.R * row_cost(table)) / documents +
           rescored * m_.R * kPairCost * key_cost();
  }

  void plan(int64_t n, Document& d) const {
    d.n = n;
    const bool mean = m_.merge == Merge::mean;
    with_isa<float>([&](auto isa) {
      using Tag = decltype(isa);
      if (mean && !find_extremes<Tag>(d)) return;
      std::vector<float> keys(kBlock), sorted(m_.R);
      std::vector<int32_t> positions(kBlock);
      d.top = TopK<float>(p_.k);
      offer_all<Tag>(m_, n, 0, sample_, keys.data(), sorted.data(), positions.data(), d.top);
      d.top.compact();
      d.rescored = sample_;
      if (!std::isfinite(d.theta())) return;  // fewer than k finite keys in the sample
      d.path = Path::scan;
      if (!mean) return;
      const double down = d.sum_high - d.wanted(m_.R), up = d.wanted(m_.R) - d.sum_low;
      const bool lists_pay = p_.path == Path::lists || (p_.path == Path::automatic &&
                                                        std::min(scan_cost_, direct_cost()) > kListsFrom);
      if (down > 4 * up || lists_pay) raise_threshold<Tag>(d);
      if (lists_pay && plan_lists<Tag>(d)) d.path = Path::lists;
      if (!std::isfinite(d.sum_high - d.wanted(m_.R))) d.path = Path::direct;
    });
  }

  const float* scores(int64_t n, int64_t r) const {
    return m_.scores + n * m_.document_stride + r * m_.repetition_stride;
  }

  // False where bounds by sums of scores would not hold: NaN, +inf, sums that could overflow.
  template <class Tag>
  bool find_extremes(Document& d) const {
    d.high.resize(m_.R);
    d.low.resize(m_.R);
    for (int64_t r = 0; r < m_.R; ++r) {
      float low[kLanes], high[kLanes];
      if (!lane_extremes<Tag>(scores(d.n, r), m_.B, low, high)) return false;
      const int64_t lanes = std::min(kLanes, m_.B);
      std::nth_element(low, low + (lanes - 1) / 2, low + lanes);
      d.high[r] = *std::max_element(high, high + lanes);
      d.low[r] = std::max(low[(lanes - 1) / 2], -1e30f);
      d.sum_high += d.high[r];
      d.sum_low += d.low[r];
      d.slack_high += std::max(d.high[r], 0.0f);
    }
    return std::isfinite(d.sum_high) && d.slack_high < 1e37;
  }

  // The exact keys of some labels that share the document's best buckets, for a better threshold.
  template <class Tag>
  void raise_threshold(Document& d) const {
    const int64_t R = m_.R, B = m_.B;
    const int64_t wanted = std::max<int64_t>(512, 4 * p_.k), repetitions = std::min<int64_t>(4, R);
    const double average = static_cast<double>(m_.L) / B;
    const int64_t buckets =
        std::min<int64_t>(kLanes - 1, std::max<int64_t>(1, std::llround(wanted / (repetitions * average))));
    std::vector<int32_t> labels, found(4 * kLanes);
    for (int64_t i = 0; i < repetitions; ++i) {
      const int64_t r = R * i / repetitions;
      float low[kLanes], high[kLanes];
      lane_extremes<Tag>(scores(d.n, r), B, low, high);
      std::sort(high, high + kLanes, [](float a, float b) { return a > b; });
      const int64_t count =
          find_above<Tag>(scores(d.n, r), B, high[buckets], found.data(), static_cast<int64_t>(found.size()));
      const int32_t* starts = p_.index->list_starts + r * (B + 1);
      const int32_t* list = p_.index->list_labels + r * m_.L;
      for (int64_t j = 0; j < count; ++j) {
        const int64_t first = starts[found[j]], last = starts[found[j] + 1];
        labels.insert(labels.end(), list + first, list + std::min(last, first + wanted));
      }
    }
    std::sort(labels.begin(), labels.end());
    labels.erase(std::unique(labels.begin(), labels.end()), labels.end());
    labels.erase(labels.begin(), std::lower_bound(labels.begin(), labels.end(), sample_));
    const int64_t count = labels.size();
    std::vector<float> keys(count), sorted(R);
    const std::vector<int32_t> documents(count, static_cast<int32_t>(d.n));
    merge_pairs<Tag>(m_, p_.index->codes, documents.data(), labels.data(), count, keys.data(), sorted.data());
    d.rescored += count;
    std::vector<Rank<float>> ranks;
    for (float key : keys) ranks.push_back(rank_of(key));
    for (const Candidate<float>& c : d.top.kept()) ranks.push_back(c.rank);
    if (static_cast<int64_t>(ranks.size()) < p_.k) return;
    std::nth_element(ranks.begin(), ranks.begin() + (p_.k - 1), ranks.end(), std::greater<>());
    // These labels come again: those of an equal rank must not be lost.
    const Rank<float> kth = ranks[p_.k - 1];
    if (kth > rank_of(-kInfinity)) d.top.require_above(kth - 1);
  }

  // Whether the lists path is worth it, and with which tau: the same for all repetitions, above `low`.
  template <class Tag>
  bool plan_lists(Document& d) const {
    const int64_t R = m_.R, B = m_.B, L = m_.L;
    const bool forced = p_.path == Path::lists;
    const double reach = d.wanted(R) - d.sum_low;  // what a label's scores above low must add up to
    if (!(reach > 0) || !std::isfinite(reach)) return false;
    // The heavy buckets for the lowest tau tried, if they are few.
    const int64_t room = forced ? R * B : std::max<int64_t>(64, R * B / 32);
    std::vector<int32_t> found(std::min(B, room));
    double tau = 0;
    bool few = false;
    for (double share : {0.5, 0.75, 0.9}) {
      tau = share * reach / R;
      d.heavy.clear();
      few = true;
      for (int64_t r = 0; r < R && few; ++r) {
        const float* row = scores(d.n, r);
        const float threshold = std::nextafter(static_cast<float>(d.low[r] + tau), -kInfinity);
        const int64_t left = room - static_cast<int64_t>(d.heavy.size());
        const int64_t count = find_above<Tag>(row, B, threshold, found.data(), std::min(B, left));
        few = count < left || (forced && count <= left);
        for (int64_t i = 0; i < count; ++i) {
          const double excess = static_cast<double>(row[found[i]]) - d.low[r] - tau;
          if (excess > 0) d.heavy.push_back({r, found[i], std::nextafter(static_cast<float>(excess), kInfinity)});
        }
      }
      if (few) break;
    }
    if (!few) return false;

    // Postings by excess, in bins up to the gap; from there on one bucket is enough to make a candidate.
    constexpr int kBins = 64;
    const double gap = reach - R * tau, bin_width = gap * 4 / (static_cast<double>(R) * kBins);
    double magnitude = 0;  // doubles must resolve the gap
    for (int64_t r = 0; r < R; ++r) magnitude += std::abs(d.low[r]) + std::abs(d.high[r]);
    if (!(gap > 1e-8 * magnitude)) return false;
    double count[kBins] = {};
    int64_t buckets_in[kBins] = {};
    for (const Heavy& h : d.heavy) {
      const int bin = static_cast<int>(std::min<double>(kBins - 1, h.excess / bin_width));
      const int32_t* starts = p_.index->list_starts + h.repetition * (B + 1) + h.bucket;
      count[bin] += starts[1] - starts[0];
      ++buckets_in[bin];
    }
    // With tau raised by bin j's lower edge: how many postings, and how many candidates to expect of random
    // buckets: P(sum of the excesses >= gap) <= exp(-s gap) * prod_r E exp(s excess_r), Chernoff's bound.
    const int64_t blocks = (L - sample_ + kSums - 1) / kSums;
    double best = forced ? 1e300 : std::min(scan_cost_, direct_cost());
    double best_edge = -1;
    for (int j = 0; j < kBins; j += 2) {
      const double edge = j * bin_width, left = gap - R * edge;
      if (!(left > 0)) break;
      double postings = 0, lists = 0;
      for (int i = j; i < kBins; ++i) postings += count[i], lists += buckets_in[i];
      double candidates = L;
      for (double power : {4.0, 8.0, 12.0, 18.0, 27.0}) {
        double exponent = -power;
        for (int i = j; i < kBins; ++i) {
          const double excess = i == kBins - 1 ? left : std::min(left, (i + 1) * bin_width - edge);
          exponent += count[i] / L * std::expm1(power * excess / left);
        }
        candidates = std::min(candidates, L * std::exp(exponent));
      }
      const double cost = postings * kPostingCost + lists * blocks * kSegmentCost + L * kSweepCost +
                          (candidates + 2 * p_.k) * R * kPairCost;
      if (cost < best) best = cost, best_edge = edge;
    }
    if (best_edge < 0) return false;
    // Rounded so that tau + excess is never below the score and gap never above what is wanted.
    d.gap = (gap - R * best_edge) * (1 - 1e-6);
    std::vector<Heavy> heavy;
    for (Heavy h : d.heavy) {
      h.excess = std::nextafter(static_cast<float>(h.excess - best_edge), kInfinity);
      if (h.excess > 0) heavy.push_back(h);
    }
    d.heavy = std::move(heavy);
    return d.gap > 0;
  }

  // ------------------------------------------------------------------------------------------- the lists

  void run_lists(const std::vector<Document*>& documents) {
    const int64_t count = documents.size();
    const int64_t parts = count >= p_.threads ? 1 : p_.threads;
    std::vector<TopK<float>> top(count * parts, TopK<float>(p_.k));
    std::vector<int64_t> postings(count * parts), rescored(count * parts);
    p_.run_tasks(count * parts, [&](int64_t task) {
      Document& d = *documents[task / parts];
      top[task].require_above(d.top.threshold());
      const int64_t begin = cut(sample_, m_.L, parts, task % parts);
      const int64_t end = cut(sample_, m_.L, parts, task % parts + 1);
      with_isa<float>([&](auto isa) {
        go_through_lists<decltype(isa)>(d, begin, end, top[task], postings[task], rescored[task]);
      });
    });
    p_.run_tasks(count, [&](int64_t i) {
      Document& d = *documents[i];
      std::vector<TopK<float>*> all{&d.top};
      for (int64_t part = 0; part < parts; ++part) {
        all.push_back(&top[i * parts + part]);
        d.postings += postings[i * parts + part];
        d.rescored += rescored[i * parts + part];
      }
      write_result(p_, d.n, first_k<float>(all, p_.k));
    });
  }

  template <class Tag>
  void go_through_lists(const Document& d, int64_t begin, int64_t end, TopK<float>& top, int64_t& postings,
                        int64_t& rescored) const {
    constexpr int kReach = 200;  // sum of a label that could be among the first k
    struct Cursor {
      const int32_t *next, *last;
      int amount;
    };
    std::vector<Cursor> cursors;
    for (const Heavy& h : d.heavy) {
      const int32_t* starts = p_.index->list_starts + h.repetition * (m_.B + 1) + h.bucket;
      const int32_t* list = p_.index->list_labels + h.repetition * m_.L;
      const int32_t* last = list + starts[1];
      const int32_t* first = std::lower_bound(list + starts[0], last, static_cast<int32_t>(begin));
      // Rounded up: never less than the excess in steps of gap / kReach.
      const double steps = h.excess / d.gap * kReach;
      if (first < last) cursors.push_back({first, last, steps < 254 ? static_cast<int>(steps) + 1 : 255});
    }
    const int64_t size = std::min(kSums, end - begin);
    std::vector<uint8_t> sums(size, 0);
    std::vector<int32_t> positions(size + 1);
    for (int64_t first = begin; first < end; first += size) {
      const int64_t stop = std::min(end, first + size);
      for (Cursor& c : cursors) {
        const int64_t added = add_saturating<Tag>(c.next, c.last - c.next, first, stop, sums.data(), c.amount);
        c.next += added;
        postings += added;
      }
      const int64_t found = take_at_least<Tag>(sums.data(), stop - first, kReach - 1, positions.data());
      for (int64_t i = 0; i < found; ++i) positions[i] += static_cast<int32_t>(first);
      rescored += found;
      offer_pairs<Tag>(found, [&](int64_t i) { return std::pair(0, positions[i]); },
                       [&](int64_t) -> const Document& { return d; }, [&](int64_t) -> TopK<float>& { return top; });
    }
  }

  // Offers the exact keys of pairs pair(0) ... pair(count - 1) = (slot, label), labels ascending.
  template <class Tag, class Pair, class Of, class Top>
  void offer_pairs(int64_t count, const Pair& pair, const Of& document, const Top& top) const {
    std::vector<int32_t> slots(kPairs), documents(kPairs), labels(kPairs);
    std::vector<float> keys(kPairs), sorted(m_.R);
    for (int64_t begin = 0; begin < count; begin += kPairs) {
      const int64_t some = std::min(kPairs, count - begin);
      for (int64_t i = 0; i < some; ++i) {
        const auto [slot, label] = pair(begin + i);
        slots[i] = slot;
        documents[i] = static_cast<int32_t>(document(slot).n);
        labels[i] = label;
      }
      merge_pairs<Tag>(m_, p_.index->codes, documents.data(), labels.data(), some, keys.data(), sorted.data());
      for (int64_t i = 0; i < some; ++i) top(slots[i]).offer(keys[i], labels[i]);
    }
  }

  // -------------------------------------------------------------------------------------------- the scan

  void run_scan(const std::vector<Document*>& documents) {
    switch (lanes_for(documents.size())) {
      case 16:
        return run_scan<16>(documents);
      case 32:
        return run_scan<32>(documents);
      default:
        return run_scan<64>(documents);
    }
  }

  template <int W>
  void run_scan(const std::vector<Document*>& documents) {
    const int64_t count = documents.size(), R = m_.R, B = m_.B, L = m_.L;
    const int64_t bytes = R * B * W;
    struct Free {
      void operator()(uint8_t* p) const { std::free(p); }
    };
    const std::unique_ptr<uint8_t, Free> table(
        static_cast<uint8_t*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)));
    if (table == nullptr) throw std::bad_alloc();
    with_isa<float>([&](auto isa) {
      using Tag = decltype(isa);
      // The bytes of min and median depend on the threshold, so they are renewed as it rises.
      for (int64_t begin = sample_, end; begin < L; begin = end) {
        end = m_.merge == Merge::mean ? L : std::min(L, 8 * begin);
        if (begin == sample_)
          for (Document* d : documents) choose_unit(*d);
        p_.run_tasks(R, [&](int64_t r) { quantize<Tag, W>(documents, r, table.get() + r * B * W); });
        const int64_t parts = std::max<int64_t>(1, std::min(p_.threads, (end - begin) / 1024));
        std::vector<TopK<float>> top(parts * count, TopK<float>(p_.k));
        std::vector<int64_t> rescored(parts * count);
        p_.run_tasks(parts, [&](int64_t part) {
          TopK<float>* tops = &top[part * count];
          for (int64_t i = 0; i < count; ++i) tops[i].require_above(documents[i]->top.threshold());
          scan_range<Tag, W>(documents, table.get(), cut(begin, end, parts, part),
                             cut(begin, end, parts, part + 1), tops, &rescored[part * count]);
        });
        p_.run_tasks(count, [&](int64_t i) {
          Document& d = *documents[i];
          for (int64_t part = 0; part < parts; ++part) {
            d.top.absorb(top[part * count + i].kept());
            d.rescored += rescored[part * count + i];
          }
          if (end == L) write_result(p_, d.n, d.top.take());
        });
      }
    });
  }

  // How a document's scores become bytes: steps below `high`, or, where the threshold is far nearer to `low`
  // (some score far above all others would make the steps useless), above `low`.
  void choose_unit(Document& d) const {
    if (m_.merge != Merge::mean) return;
    const double wanted = d.wanted(m_.R);
    const double down = d.sum_high - wanted, up = wanted - d.sum_low;
    d.from_low = up > 0 && down > 16 * up;
    d.unit = std::max((d.from_low ? up : down) / (d.from_low ? 160 : 250), 1e-30);
  }

  template <class Tag, int W>
  void quantize(const std::vector<Document*>& documents, int64_t r, uint8_t* rows) const {
    const float* pointers[W] = {};
    float origin[W] = {}, scale[W] = {};
    for (size_t i = 0; i < documents.size(); ++i) {
      const Document& d = *documents[i];
      pointers[i] = scores(d.n, r);
      if (m_.merge != Merge::mean) {
        // Scale 0: whether the score is below. The mean of two scores from there on may overflow.
        origin[i] = static_cast<float>(std::min(d.theta(), 0x1p126));
        continue;
      }
      const float steps = static_cast<float>(std::ldexp(1 / d.unit, shift_));
      origin[i] = d.from_low ? d.low[r] : d.high[r];
      scale[i] = d.from_low ? steps : -steps;
    }
    quantize_rows<Tag, W>({pointers, origin, scale, m_.B}, rows);
  }

  // The bound on document d's sums for threshold theta; `below`: sums below it are wanted.
  uint8_t bound_for(const Document& d, const TopK<float>& top) const {
    const int64_t R = m_.R;
    if (m_.merge != Merge::mean) {
      // How many scores may lie below theta: none (min); fewer than half, so that the middle one, or the
      // upper of the middle two, does not (median).
      return static_cast<uint8_t>(m_.merge == Merge::min ? 1 : R / 2 + 1);
    }
    constexpr double kRounding = 1e-3;  // of the bytes' fp32 arithmetic: 255 * 2^-22 a score, R <= 1024
    const double theta = key_of<float>(top.threshold());
    const double wanted = R * theta - d.slack(R, theta);
    double bound;
    if (d.from_low)  // every floor, of scores and of groups, may have lost a step
      bound = std::floor((wanted - d.sum_low) / d.unit - std::ldexp(static_cast<double>(R), -shift_) -
                         (shift_ ? groups_ : 0) - kRounding * R);
    else
      bound = std::floor((d.sum_high - wanted) / d.unit + kRounding * R) + 1;
    return static_cast<uint8_t>(std::min(255.0, std::max(0.0, bound)));
  }

  template <class Tag, int W>
  void scan_range(const std::vector<Document*>& documents, const uint8_t* table, int64_t begin, int64_t end,
                  TopK<float>* top, int64_t* rescored) const {
    const int64_t count = documents.size();
    uint8_t bound[W] = {};  // no document: sums below 0
    ByteScan scan{table, p_.index->codes, m_.R, m_.B, (m_.R + groups_ - 1) / groups_, shift_, bound, ~0ull, 0};
    if (W < 64) scan.below = (1ull << (W % 64)) - 1;
    for (int64_t i = 0; i < count; ++i) {
      bound[i] = bound_for(*documents[i], top[i]);
      if (documents[i]->from_low) {
        scan.below &= ~(1ull << i);
        if (shift_) scan.saturated_too |= 1ull << i;
      }
    }
    std::vector<int32_t> labels(kTile + 4);
    std::vector<uint64_t> wanted(kTile + 4);
    std::vector<std::pair<int32_t, int32_t>> pairs;
    int64_t tile = 2048;
    for (int64_t first = begin; first < end; first += tile, tile = std::min(kTile, 2 * tile)) {
      const int64_t found =
          scan_labels<Tag, W>(scan, first, std::min(end, first + tile), labels.data(), wanted.data());
      pairs.clear();
      for (int64_t i = 0; i < found; ++i)
        for (uint64_t left = wanted[i]; left; left &= left - 1) {
          const int slot = __builtin_ctzll(left);
          pairs.emplace_back(slot, labels[i]);
          ++rescored[slot];
        }
      offer_pairs<Tag>(pairs.size(), [&](int64_t i) { return pairs[i]; },
                       [&](int64_t slot) -> const Document& { return *documents[slot]; },
                       [&](int64_t slot) -> TopK<float>& { return top[slot]; });
      if (m_.merge != Merge::mean) continue;
      for (int64_t i = 0; i < count; ++i) {
        if (static_cast<int64_t>(top[i].kept().size()) >= p_.k + p_.k / 4 + 4) top[i].compact();
        bound[i] = bound_for(*documents[i], top[i]);
      }
    }
  }

  const Decode<float>& p_;
  const MergeScores<float>& m_;
  int64_t sample_ = 0;
  int64_t groups_ = 1;  // of repetitions, each with a sum of its own in the scan
  int shift_ = 0;       // of each group's sum: 2^shift >= groups
  bool possible_ = false;
  double scan_cost_ = 0;
};

}  // namespace

void decode(const Decode<float>& p) { Decoder(p).run(); }

void decode(const Decode<double>& p) {
  std::vector<int64_t> documents(p.N);
  for (int64_t n = 0; n < p.N; ++n) documents[n] = n;
  decode_direct(p, documents);
}

}  // namespace mach
