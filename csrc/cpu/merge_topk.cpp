#include "merge_topk.h"

#include <algorithm>
#include <cstdint>

#include "merge_costs.h"
#include "merge_direct.h"
#include "merge_document.h"
#include "merge_lists.h"
#include "merge_plan.h"
#include "merge_scan.h"
#include "merge_table.h"

namespace mach {
namespace {

constexpr int64_t kChunk = 256;  // documents planned together, at most; fewer where their scores are large
constexpr int64_t kChunkBytes = 12 << 20;  // of scores planned together: exact keys find them in the cache

// How many labels are scored exactly first, to get a threshold. If a path is forced and there are few labels,
// the number is smaller, so that the path has something to do.
int64_t sample_size(const MergeTopK<float>& p) {
  const int64_t L = p.merge.L, usual = std::max<int64_t>(128, 4 * p.k);
  return p.path == Path::automatic ? std::min(L, usual)
                                   : std::min({L, usual, std::max({int64_t(8), p.k, L / 16})});
}

// Chooses the path of each document, a chunk of documents at a time.
class Choice {
 public:
  explicit Choice(const MergeTopK<float>& p)
      : p_(p), m_(p.merge), run_{p, sample_size(p), MergeCosts(p, sample_size(p))}, costs_(run_.costs) {
    possible_ = p.index != nullptr && run_.sample < m_.L && m_.R <= 250;  // sums of bytes
  }

  void run() {
    const int64_t fit = kChunkBytes / (m_.R * m_.B * static_cast<int64_t>(sizeof(float)));
    const int64_t size = std::clamp(fit / kWidth * kWidth, kWidth, kChunk);
    for (int64_t begin = 0; begin < p_.N; begin += size) chunk(begin, std::min(p_.N, begin + size));
  }

 private:
  // The paths run in the order lists, scan, direct, because a document that one gives up goes to the next.
  void chunk(int64_t begin, int64_t end) {
    costs_.set_together(std::min(kWidth, end - begin));
    Array<Document> planned;
    if (worth_a_plan()) plan(begin, end, planned);
    Array<int64_t> direct;
    Array<Document*> scan, lists;
    for (int64_t n = begin; n < end; ++n) {
      Document* document = planned.empty() ? nullptr : &planned[n - begin];
      if (document == nullptr || document->path == Path::direct)
        direct.push_back(n);
      else
        (document->path == Path::lists ? lists : scan).push_back(document);
    }
    leave_to_lists(scan, lists);
    if (!lists.empty()) merge_lists(run_, lists);
    for (Document* document : lists)
      if (document->path == Path::scan) scan.push_back(document);  // gave up
    leave_to_direct(scan, direct);
    run_scans(scan);
    for (const Document* document : scan)
      if (document->path == Path::direct) direct.push_back(document->n);
    if (!direct.empty()) merge_direct(run_, direct);
    if (p_.trace) write_trace(planned);
  }

  bool worth_a_plan() const {
    if (!possible_ || p_.path == Path::direct) return false;
    return p_.path != Path::automatic ||
           (costs_.plan_cost() < 0.7 * costs_.direct &&
            (costs_.scan < costs_.direct || costs_.lists_may_pay(costs_.direct)));
  }

  void plan(int64_t begin, int64_t end, Array<Document>& planned) {
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
        plan_document(run_, n, planned[n - begin], scratch);
    });
  }

  // Moves documents to the lists where few are left: a scan costs about as much for a few as for 64.
  void leave_to_lists(Array<Document*>& scan, Array<Document*>& lists) const {
    const int64_t left = std::min<int64_t>(kWidth, scan.size());
    if (p_.path != Path::automatic || left == 0 || left >= costs_.together) return;
    const double others = std::min(costs_.scan_cost(left), costs_.direct_cost(left));
    const auto to_lists = std::stable_partition(
        scan.begin(), scan.end(), [&](const Document* document) { return document->lists_cost >= others; });
    for (auto document = to_lists; document < scan.end(); ++document) (*document)->path = Path::lists;
    lists.insert(lists.end(), to_lists, scan.end());
    scan.erase(to_lists, scan.end());
  }

  // Moves all documents to the direct path where it is cheaper than a scan for so few.
  void leave_to_direct(Array<Document*>& scan, Array<int64_t>& direct) const {
    const int64_t rest = std::min<int64_t>(kWidth, scan.size());
    if (p_.path != Path::automatic || rest == 0 || costs_.scan_cost(rest) <= costs_.direct_cost(rest)) return;
    for (Document* document : scan) {
      document->path = Path::direct;
      direct.push_back(document->n);
    }
    scan.clear();
  }

  void run_scans(Array<Document*>& scan) const {
    // Documents with like thresholds together: a label is dropped when none of a scan's documents wants it.
    std::stable_sort(scan.begin(), scan.end(), [](const Document* a, const Document* b) {
      return a->from_low != b->from_low ? a->from_low : a->depth() < b->depth();
    });
    const int64_t together =
        kWidth * std::clamp<int64_t>(kTableBytes / (m_.R * m_.B * kWidth), 1, kChunk / kWidth);
    for (size_t i = 0; i < scan.size(); i += together)
      merge_scan(run_, {scan.begin() + i, scan.begin() + std::min<size_t>(scan.size(), i + together)});
  }

  void write_trace(const Array<Document>& planned) const {
    for (const Document& document : planned)
      if (document.path != Path::direct) {
        int64_t* row = p_.trace + document.n * kTraceColumns;
        row[kTracePath] = static_cast<int64_t>(document.path);
        row[kTracePostings] = document.postings;
        row[kTraceRescored] = document.rescored;
      }
  }

  const MergeTopK<float>& p_;
  const MergeScores<float>& m_;
  MergeRun run_;
  MergeCosts& costs_;
  bool possible_ = false;
  Table bytes_;
};

}  // namespace

void merge_topk(const MergeTopK<float>& p) {
  Choice(p).run();
  own_table().release_large();
}

void merge_topk(const MergeTopK<double>& p) {
  Array<int64_t> documents(p.N);
  for (int64_t n = 0; n < p.N; ++n) documents[n] = n;
  merge_alone(p, documents);
}

}  // namespace mach
