#include "merge_lists.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "merge_lists_kernels.h"

namespace mach {
namespace {

constexpr int64_t kSums = 1 << 19;  // labels of the lists path's sums: they stay in the second-level cache

class Lists {
 public:
  explicit Lists(const MergeRun& run) : run_(run), p_(run.call), m_(run.call.merge), costs_(run.costs) {}

  // The lists path's best tau, if it is possible: the same height above `low` in all repetitions, but nowhere
  // under `least_heavy`, below which no buckets are known.
  void plan_lists(Document& d) const {
    const int64_t R = m_.R, L = m_.L;
    const double wanted = d.wanted(R);
    double magnitude = 0;  // doubles must resolve the gap
    for (int64_t r = 0; r < R; ++r)
      magnitude += std::abs(d.low[r]) + std::abs(d.high[r]) + std::abs(d.least_heavy[r]);
    const int64_t blocks = (L - run_.sample + kSums - 1) / kSums;
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
        const double count = static_cast<double>(run_.labels_of(h).size());
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
                          (candidates / kChernoff + 2 * p_.k) * costs_.pair_cost();
      if (cost < d.lists_cost) d.lists_cost = cost, d.gap = gap * (1 - 1e-6), d.tau = tau;
    }
  }

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
          gave_up[i] = !go_through_lists<decltype(isa)>(d, cut(run_.sample, m_.L, parts, i % parts),
                                                        cut(run_.sample, m_.L, parts, i % parts + 1), scratch,
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

 private:
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
      auto [first, last] = run_.labels_of(h);
      if (begin > run_.sample)
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
      if (p_.path == Path::automatic &&
          rescored * costs_.pair_cost() > 2 * std::min(costs_.scan, costs_.direct))
        return false;
      Array<Pair>& pairs = scratch.pairs;
      pairs.resize(found);
      for (int64_t i = 0; i < found; ++i) pairs[i] = {0, static_cast<int32_t>(first + positions[i])};
      const Document* document = &d;
      run_.offer_pairs<Tag>(pairs, &document, &top);
    }
    return true;
  }

  const MergeRun& run_;
  const MergeTopK<float>& p_;
  const MergeScores<float>& m_;
  const MergeCosts& costs_;
};

}  // namespace

void plan_lists(const MergeRun& run, Document& d) { Lists(run).plan_lists(d); }

void merge_lists(const MergeRun& run, const Array<Document*>& documents) { Lists(run).run_lists(documents); }

}  // namespace mach
