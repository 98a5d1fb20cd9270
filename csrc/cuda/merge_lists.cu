#include <algorithm>
#include <cmath>

#include "merge_lists.cuh"
#include "merge_scan.cuh"
#include "select.cuh"

namespace mach {
namespace {

constexpr int kHeights = 64;      // levels tried, between low and high
constexpr int kMostHeight = 51;   // above it, few labels are out of reach
constexpr int kHeavy = 1024;      // lists of a document
constexpr int kSet = 2048;        // places for labels, twice as many as there are
constexpr int kFound = kSet / 2;  // labels that get an exact key
constexpr int kMostSlots = 1 << 15;
constexpr int kFewSlots = 1 << 14;  // for a device with 64 KB of shared memory
constexpr uint32_t kNone = 0xffffffffu;

// Amounts are up to kSteps + 1. A sum of 16 bits takes no more from 2^15 on: every thread may have added one
// amount too many until it sees that, and these fit, too.
constexpr int kSteps = 62;
constexpr uint32_t kFull = 0x8000;
static_assert(kFull + kSelectThreads * (kSteps + 1) <= 0x10000, "sums would run over");

struct Heavy {            // a list
  uint32_t first, count;  // within the repetition's
  uint16_t repetition, amount;
};

struct ListsShared {
  // Bins; later the first half are the labels that were found, the second half their ranks.
  SelectShared<float> select;
  uint32_t set[kSet];
  Heavy heavy[kHeavy];
  float tau[kMaxScanRepetitions];
  uint32_t lists_at[kHeights], postings_at[kHeights];  // of scores so far up from low to high
  double sum_high, slack_high, sum_tau, magnitude, unit;
  uint32_t height, lists, postings, found;
  uint32_t theta;  // rank of the k-th best exact key so far; 0: none
};

struct Plan {
  MergeListsParams p;
  int slots;           // a power of two
  int peaks;           // of a repetition
  uint32_t few_lists;  // in groups: a level above which there are more of them is too low
  uint32_t postings;   // at most
};

// -------------------------------------------------------------------------------------------- the level

// How far up from low to high a score of a row [document, repetition] is, in [0, kHeights).
struct Scale {
  float low, steps;
  __device__ Scale(const MergeListsParams& p, int64_t row) : low(p.low[row]) {
    const float high = p.high[row];
    steps = high > low ? kHeights / (high - low) : 0;
  }
  __device__ int operator()(float score) const {
    const float height = (score - low) * steps;
    if (!(height >= 1)) return 0;  // also -inf, and where there is nothing to tell apart
    return height < kHeights ? static_cast<int>(height) : kHeights - 1;
  }
};

__device__ void clear_heights(ListsShared& shared) {
  for (int i = threadIdx.x; i < kHeights; i += kSelectThreads) shared.lists_at[i] = shared.postings_at[i] = 0;
}

// The lowest height from `least` on with so many lists and postings at most; kHeights where there is none.
__device__ uint32_t lowest_height(ListsShared& shared, uint32_t least, uint32_t most_lists,
                                  uint32_t most_postings) {
  if (threadIdx.x == 0) shared.height = kHeights;
  __syncthreads();
  if (threadIdx.x >= least && threadIdx.x < kHeights) {
    uint32_t lists = 0, postings = 0;
    for (int i = threadIdx.x; i < kHeights; ++i) {
      lists += shared.lists_at[i];
      postings += shared.postings_at[i];
    }
    if (lists <= most_lists && postings <= most_postings) atomicMin(&shared.height, threadIdx.x);
  }
  __syncthreads();
  return shared.height;
}

// Counts groups for lists.
__device__ uint32_t guess_height(const Plan& s, ListsShared& shared, int64_t n) {
  const MergeInput<float>& m = s.p.merge;
  clear_heights(shared);
  __syncthreads();
  for (int64_t row = n * m.R + warp_id(); row < (n + 1) * m.R; row += kSelectThreads / kWarp) {
    const Scale height_of(s.p, row);
    const float* peaks = s.p.peaks + row * s.peaks;
    for (int i = lane_id(); i < s.peaks; i += kWarp) {
      const int height = height_of(peaks[i]);
      if (height > 0) atomicAdd(&shared.lists_at[height], 1u);
    }
  }
  __syncthreads();
  return lowest_height(shared, 1, s.few_lists, 0);
}

// tau and what is summed over the repetitions. False where bounds by sums don't hold, or nothing is above
// tau.
__device__ bool choose_levels(const Plan& s, ListsShared& shared, int64_t n, uint32_t height) {
  if (warp_id() == 0) {
    double sum_high = 0, slack_high = 0, sum_tau = 0, magnitude = 0, excess = 0;
    const int R = static_cast<int>(s.p.merge.R);
    for (int r = lane_id(); r < R; r += kWarp) {
      const float low = s.p.low[n * R + r], high = s.p.high[n * R + r];
      const float level = low + static_cast<float>(height) / kHeights * (high - low);
      const float tau = level < high ? level : high;
      shared.tau[r] = tau;
      sum_high += high;
      slack_high += high > 0 ? high : 0;
      sum_tau += tau;
      magnitude += fabs(static_cast<double>(tau));
      excess = fmax(excess, static_cast<double>(high) - tau);
    }
    sum_high = warp_sum(sum_high);
    slack_high = warp_sum(slack_high);
    sum_tau = warp_sum(sum_tau);
    magnitude = warp_sum(magnitude);
    excess = warp_max(excess);
    if (lane_id() == 0) {
      shared.sum_high = sum_high;
      shared.slack_high = slack_high;
      shared.sum_tau = sum_tau;
      shared.magnitude = magnitude;
      shared.unit = excess / kSteps;
    }
  }
  __syncthreads();
  return sums_hold(shared.sum_high, shared.slack_high) && shared.unit > 0;
}

// The lists of the buckets above tau, and how many there are by height. Eight lanes read a group's eight
// neighbouring buckets together.
__device__ void find_heavy(const Plan& s, ListsShared& shared, int64_t n) {
  const MergeInput<float>& m = s.p.merge;
  const int lane = lane_id(), octet = lane / 8;
  if (threadIdx.x == 0) shared.lists = shared.postings = 0;
  clear_heights(shared);
  __syncthreads();
  for (int r = warp_id(); r < m.R; r += kSelectThreads / kWarp) {
    const float tau = shared.tau[r];
    const Scale height_of(s.p, n * m.R + r);
    const float* peaks = s.p.peaks + (n * m.R + r) * s.peaks;
    const float* scores = m.scores + n * m.document_stride + r * m.repetition_stride;
    const int B = static_cast<int>(m.B);
    const int32_t* starts = s.p.list_starts + r * (B + 1);
    for (int first = 0; first < s.peaks; first += kWarp) {
      unsigned above = __ballot_sync(kAllLanes, first + lane < s.peaks && peaks[first + lane] > tau);
      while (above) {
        unsigned own = above;
        for (int i = 0; i < kWarp / 8; ++i) {
          above &= above - 1;
          if (i < octet) own &= own - 1;
        }
        if (own == 0) continue;
        const int group = first + __ffs(static_cast<int>(own)) - 1;
        const int begin = group / 4 * 256 + group % 4 * 8 + lane % 8;
        float x[kPeakRows];
#pragma unroll
        for (int i = 0; i < kPeakRows; ++i) x[i] = begin + i * kWarp < B ? scores[begin + i * kWarp] : tau;
#pragma unroll
        for (int i = 0; i < kPeakRows; ++i) {
          if (!(x[i] > tau)) continue;
          const auto [begins, count] = list_of(starts + begin + i * kWarp, m.L);
          if (count == 0) continue;
          const int steps = static_cast<int>((static_cast<double>(x[i]) - tau) / shared.unit);
          // One posting too many is enough: kHeavy lists' postings never add up to 2^32.
          const uint32_t counted = count <= s.postings ? count : s.postings + 1;
          const uint32_t at = atomicAdd(&shared.lists, 1u);
          atomicAdd(&shared.postings, counted);
          const int height = height_of(x[i]);
          atomicAdd(&shared.lists_at[height], 1u);
          atomicAdd(&shared.postings_at[height], counted);
          if (at < kHeavy)
            shared.heavy[at] = {begins, count, static_cast<uint16_t>(r),
                                static_cast<uint16_t>((steps < kSteps ? steps : kSteps) + 1)};
        }
      }
    }
  }
  __syncthreads();
}

// --------------------------------------------------------------------------------------------- the sums

// f(label, amount) for all postings: eight lanes a list, several loads of each under way.
template <class F>
__device__ void go_through(const Plan& s, const ListsShared& shared, const F& f) {
  constexpr int kOctets = kSelectThreads / 8, kTogether = 8;
  const auto L = static_cast<uint32_t>(s.p.merge.L);
  for (uint32_t h = threadIdx.x / 8; h < shared.lists; h += kOctets) {
    const Heavy list = shared.heavy[h];
    const int32_t* labels = s.p.list_labels + list.repetition * s.p.merge.L + list.first;
    for (uint32_t i = threadIdx.x % 8; i < list.count; i += 8 * kTogether) {
      uint32_t label[kTogether];
#pragma unroll
      for (int j = 0; j < kTogether; ++j)
        label[j] = static_cast<uint32_t>(labels[i + 8 * j < list.count ? i + 8 * j : i]);
#pragma unroll
      for (int j = 0; j < kTogether; ++j)
        if (i + 8 * j < list.count && label[j] < L) f(label[j], list.amount);
    }
  }
  __syncthreads();
}

struct Place {  // of a label's sum: half a word
  uint32_t word;
  int shift;
};
__device__ __forceinline__ Place place_of(const Plan& s, uint32_t label) {
  const uint32_t slot = label & static_cast<uint32_t>(s.slots - 1);
  return {slot / 2, static_cast<int>(slot % 2) * 16};
}

__device__ void add_postings(const Plan& s, const ListsShared& shared, uint32_t* sums) {
  for (int i = threadIdx.x; i < s.slots / 2; i += kSelectThreads) sums[i] = 0;
  __syncthreads();
  go_through(s, shared, [&](uint32_t label, uint32_t amount) {
    const Place place = place_of(s, label);
    const uint32_t before = atomicAdd(&sums[place.word], amount << place.shift);
    if (before >> place.shift & kFull) atomicSub(&sums[place.word], amount << place.shift);
  });
}

// A sum that about `wanted` slots have or exceed, 1 at least.
__device__ uint32_t choose_cutoff(const Plan& s, ListsShared& shared, const uint32_t* sums, uint32_t wanted) {
  int coarse = 0;
  while (s.p.merge.R * (kSteps + 1) >> coarse >= kBins) ++coarse;
  // The slots of sum 0 are not counted: the last bin is as many as are wanted at most, so one is found.
  for (int i = threadIdx.x; i < kBins; i += kSelectThreads)
    shared.select.bins[i] = i < kBins - 1 ? 0 : wanted;
  __syncthreads();
  for (int i = threadIdx.x; i < s.slots / 2; i += kSelectThreads)
    for (uint32_t sum : {sums[i] & 0xffff, sums[i] >> 16}) {
      const uint32_t bin = sum >> coarse;
      if (bin > 0) atomicAdd(&shared.select.bins[bin < kBins ? kBins - 1 - bin : 0], 1u);
    }
  __syncthreads();
  Selection<float> chosen{0, 0, wanted, 0};
  choose_bin(shared.select, chosen, 0);
  const uint32_t cutoff = chosen.rank >> digit_shift<float>(0) << coarse;
  return cutoff > 0 ? cutoff : 1;
}

// ------------------------------------------------------------------------------------------- the labels

// Labels whose slot's sum is at least the cutoff, each once. More than kFound: not all of them.
__device__ uint32_t find_labels(const Plan& s, ListsShared& shared, const uint32_t* sums, uint32_t cutoff) {
  for (int i = threadIdx.x; i < kSet; i += kSelectThreads) shared.set[i] = kNone;
  if (threadIdx.x == 0) shared.found = 0;
  __syncthreads();
  uint32_t* labels = shared.select.bins;
  const volatile uint32_t& so_far = shared.found;
  go_through(s, shared, [&](uint32_t label, uint32_t) {
    const Place place = place_of(s, label);
    if ((sums[place.word] >> place.shift & 0xffff) < cutoff || so_far > kFound) return;
    // Open addressing. There is room for more than kFound labels and another one of each thread.
    for (uint32_t at = label * 2654435769u >> 21;; at = (at + 1) % kSet) {
      const uint32_t there = atomicCAS(&shared.set[at], kNone, label);
      if (there == label) return;
      if (there != kNone) continue;
      const uint32_t place_found = atomicAdd(&shared.found, 1u);
      if (place_found < kFound) labels[place_found] = label;
      return;
    }
  });
  return shared.found;
}

// Their ranks; the k-th greatest to shared.theta.
__device__ void rank_labels(const Plan& s, ListsShared& shared, int64_t n, uint32_t found) {
  const uint32_t* labels = shared.select.bins;
  uint32_t* ranks = shared.select.bins + kFound;
  const auto k = static_cast<uint32_t>(s.p.k);
  const int R = static_cast<int>(s.p.merge.R);
  for (uint32_t i = threadIdx.x; i < found; i += kSelectThreads)
    ranks[i] = rank_of(key_mean(label_scores(s.p.merge, n, labels[i]), R));
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < found; i += kSelectThreads) {
    const uint32_t rank = ranks[i];
    uint32_t greater = 0, equal = 0;
    for (uint32_t j = 0; j < found; ++j) {
      greater += ranks[j] > rank;
      equal += ranks[j] == rank;
    }
    if (greater < k && k <= greater + equal) atomicMax(&shared.theta, rank);  // all of them the same
  }
  __syncthreads();
}

// The sum that a label needs at least for a key of theta; 0 where that can't be said.
__device__ uint32_t reach_of(const Plan& s, const ListsShared& shared) {
  const int R = static_cast<int>(s.p.merge.R);
  const double theta = key_of(shared.theta);
  if (!(fabs(theta) < INFINITY)) return 0;
  const double wanted = R * theta - slack(R, theta, shared.slack_high);
  // Off what fp64 may have lost in these sums, and in the amounts.
  const double gap = wanted - shared.sum_tau - 1e-12 * (shared.magnitude + fabs(wanted));
  const double reach = gap / shared.unit * (1 - 1e-6);
  return reach >= 1 ? static_cast<uint32_t>(fmin(reach, kFull - 1.0)) : 0;
}

// What was done for a document.
struct Work {
  uint32_t postings, keyed;
};

// Whether the first k are among the labels that were found.
__device__ bool find_first_k(const Plan& s, ListsShared& shared, uint32_t* sums, int64_t n, Work& work) {
  const uint32_t most = s.p.lists == Lists::all ? kHeights - 1 : kMostHeight;
  uint32_t height = guess_height(s, shared, n);
  if (height > most || !choose_levels(s, shared, n, height)) return false;
  find_heavy(s, shared, n);
  if (shared.lists > kHeavy || shared.postings > s.postings) {  // now it is known how many there are
    height = lowest_height(shared, height + 1, kHeavy, s.postings / 2);
    if (height > most || !choose_levels(s, shared, n, height)) return false;
    find_heavy(s, shared, n);
    if (shared.lists > kHeavy || shared.postings > s.postings) return false;
  }
  work.postings = shared.postings;
  add_postings(s, shared, sums);
  const auto k = static_cast<uint32_t>(s.p.k);
  uint32_t cutoff = choose_cutoff(s, shared, sums, 2 * k > 32 ? 2 * k : 32);
  for (int attempt = 0; attempt < 2; ++attempt) {
    const uint32_t found = find_labels(s, shared, sums, cutoff);
    if (found < k || found > kFound) return false;
    rank_labels(s, shared, n, found);
    work.keyed += found;
    const uint32_t reach = reach_of(s, shared);
    if (reach >= cutoff) return true;
    if (reach == 0) return false;
    cutoff = reach;
  }
  return false;
}

// One block a document.
__global__ void __launch_bounds__(kSelectThreads, 2) lists_kernel(const Plan s) {
  auto& shared = *dynamic_shared<ListsShared>();
  auto* sums = reinterpret_cast<uint32_t*>(&shared + 1);
  const Candidates& candidates = s.p.candidates;
  for (int64_t n = blockIdx.x; n < s.p.merge.N; n += gridDim.x) {
    if (threadIdx.x == 0) shared.theta = shared.found = 0;
    __syncthreads();
    Work work{};
    const bool done = s.p.lists != Lists::none && find_first_k(s, shared, sums, n, work);
    __syncthreads();
    const uint32_t found = shared.found, theta = shared.theta;
    __syncthreads();
    if (threadIdx.x == 0) shared.found = 0;
    __syncthreads();
    if (done)
      for (uint32_t i = threadIdx.x; i < found; i += kSelectThreads)
        if (shared.select.bins[kFound + i] >= theta)
          candidates.labels[n * candidates.capacity + atomicAdd(&shared.found, 1u)] =
              static_cast<int32_t>(shared.select.bins[i]);
    __syncthreads();
    if (threadIdx.x == 0) {
      if (done)
        candidates.counts[n] = shared.found;
      else
        s.p.documents[atomicAdd(s.p.left, 1u)] = static_cast<int32_t>(n);
      s.p.thresholds[n] = theta;
      int32_t* row = candidates.work + n * kTraceColumns;
      row[0] = done ? 2 : 1;
      row[1] = static_cast<int32_t>(work.postings);
      row[2] = static_cast<int32_t>(work.keyed + (done ? 0 : s.p.sampled));
    }
    __syncthreads();  // before the next document's shared memory
  }
}

}  // namespace

cudaError_t launch_merge_lists(const MergeListsParams& params, cudaStream_t stream) {
  const MergeInput<float>& m = params.merge;
  Plan s{};
  s.p = params;
  int most = kMostSlots;
  if (static_cast<int64_t>(sizeof(ListsShared)) + 2 * most >
      device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin))
    most = kFewSlots;
  for (s.slots = 64; s.slots < most && s.slots < m.L; s.slots *= 2) {
  }
  s.peaks = static_cast<int>(num_peaks(m.B));
  // Sums that stand for a few postings each still tell labels apart, for more where the scan would go over
  // far more rows. Counted on 256 documents of peaky scores, 10M labels, R = 16, B = 20,000: 4 * most leave
  // half of them to the scan, 8 * most 14, 16 * most 8.
  const int64_t postings =
      std::min({std::max<int64_t>(4 * most, m.L * m.R / 80), int64_t{16} * most, m.L * m.R / 8});
  s.postings = static_cast<uint32_t>(postings);
  // Groups with one bucket above the level, for most; lists of L / B labels.
  s.few_lists = static_cast<uint32_t>(std::min<int64_t>(kHeavy / 2, postings / 2 * m.B / m.L));
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(m.N, 1 << 20));
  return MACH_LAUNCH(lists_kernel, blocks, kSelectThreads, sizeof(ListsShared) + 2 * s.slots, stream, s);
}

}  // namespace mach
