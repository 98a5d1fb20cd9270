#include "merge_scan.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "merge_table.h"

namespace mach {
namespace {

constexpr int64_t kTile = 1 << 16;  // labels between two updates of a scan's bounds
constexpr int64_t kJudged = 4096;   // labels of a tile from which on it is asked whether a scan pays

class Scan {
 public:
  explicit Scan(const MergeRun& run) : run_(run), p_(run.call), m_(run.call.merge), costs_(run.costs) {}

  void run_scan(const Array<Document*>& documents) {
    switch (costs_.lanes_for(documents.size())) {
      case 16:
        return run_scan<16>(documents);
      case 32:
        return run_scan<32>(documents);
      default:
        return run_scan<64>(documents);
    }
  }

 private:
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
      for (int64_t begin = run_.sample, end; begin < L; begin = end) {
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
        quantize_mean<Tag>(run_, d, r, column);
      else  // whether the score is below theta. The mean of two scores from there on may overflow.
        quantize<Tag>(run_.scores(d.n, r), B, static_cast<float>(std::min(d.theta(), 0x1p126)), 0, column);
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
        run_.offer_pairs<Tag>(pairs, documents, top);
        // Where many labels stay, as with equal scores, the bounds cost more than they save.
        for (int64_t i = 0; i < count; ++i) {
          const int64_t stayed = next[i] - (i ? next[i - 1] : 0);
          range.rescored[slot + i] += stayed;
          // As many more may come each time that the labels gone through double; direct starts again.
          const double to_come = stayed * std::log2(static_cast<double>(m_.L) / last);
          if (p_.path == Path::automatic && tile >= kJudged && to_come * costs_.pair_cost() > costs_.direct)
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

  const MergeRun& run_;
  const MergeTopK<float>& p_;
  const MergeScores<float>& m_;
  const MergeCosts& costs_;
};

}  // namespace

void merge_scan(const MergeRun& run, const Array<Document*>& documents) { Scan(run).run_scan(documents); }

}  // namespace mach
