#include "merge_direct.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "merge_direct_kernels.h"
#include "merge_table.h"

namespace mach {

// A task is a group of documents times a range of labels; inside it a block's codes, in the cache, serve
// every document of the group.
template <class T>
void merge_alone(const MergeTopK<T>& p, const Array<int64_t>& documents) {
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

template void merge_alone(const MergeTopK<float>& p, const Array<int64_t>& documents);
template void merge_alone(const MergeTopK<double>& p, const Array<int64_t>& documents);

namespace {

// Divides documents into groups of 16. A group is summed together, or its documents are computed alone.
class Direct {
 public:
  explicit Direct(const MergeRun& run) : run_(run), p_(run.call), m_(run.call.merge), costs_(run.costs) {}

  void run_direct(const Array<int64_t>& documents) {
    const int64_t count = documents.size(), groups = (count + kSumLanes - 1) / kSumLanes;
    const bool possible = p_.index != nullptr && m_.merge == Merge::mean && run_.sample < m_.L;
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
        if (possible && costs_.sums_cost() < some * costs_.alone_cost(some))
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
    if (!others[0].empty()) merge_alone(p_, others[0]);
  }

 private:
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
        for (int64_t i = 0; i < count; ++i) rows[i] = run_.scores(documents[i], r);
        interleave_scores<Tag>(rows, B, table + r * B * kSumLanes);
      });
      Array<TopK<float>> sample(count, TopK<float>(p_.k));
      team.run_tasks(count, [&](int64_t i) {
        Scratch scratch(m_);
        offer_all<Tag>(m_, documents[i], 0, run_.sample, scratch.keys.data(), scratch.sorted.data(),
                       scratch.positions.data(), sample[i]);
        sample[i].compact();
      });
      const int64_t parts = std::max<int64_t>(1, std::min(team.threads, (L - run_.sample) / 1024));
      Array<TopK<float>> top(parts * count, TopK<float>(p_.k));
      team.run_tasks(parts, [&](int64_t part) {
        TopK<float>* tops = &top[part * count];
        for (int64_t i = 0; i < count; ++i) tops[i].require_above(sample[i].threshold());
        sum_range<Tag>(table, count, cut(run_.sample, L, parts, part), cut(run_.sample, L, parts, part + 1),
                       tops);
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

  const MergeRun& run_;
  const MergeTopK<float>& p_;
  const MergeScores<float>& m_;
  const MergeCosts& costs_;
};

}  // namespace

void merge_direct(const MergeRun& run, const Array<int64_t>& documents) { Direct(run).run_direct(documents); }

}  // namespace mach
