// Selection of the first k of many pairs (rank, label) in a block: rank descending, then label ascending. It
// works digit by digit, from the most significant. A pass counts the pairs by a digit of 11 bits. The counts
// tell which bin contains the k-th pair. The selection ends as soon as all pairs of a bin are needed. Ties
// and any distribution of keys therefore cost no more than a few passes. Nothing is moved. The counts are
// integers, so the result does not depend on the order of the threads.
#pragma once

#include "merge_key.cuh"

namespace mach {

constexpr int kSelectThreads = 512;
constexpr int kDigitBits = 11, kBins = 1 << kDigitBits;

template <class T>
constexpr int kRankPasses = (8 * sizeof(T) + kDigitBits - 1) / kDigitBits;
template <class T>
constexpr int kPasses = kRankPasses<T> + 3;  // and three for labels, of up to 31 bits

// What is known so far. Once done: the pairs with a higher rank, or this rank and a label up to this one.
template <class T>
struct Selection {
  Rank<T> rank;
  uint32_t label;
  uint32_t needed;  // how many more of those that share the digits so far
  uint32_t done;

  __device__ bool takes(Rank<T> r, uint32_t l) const { return r > rank || (r == rank && l <= label); }
};

template <class T>
__device__ inline Selection<T> select_from(uint32_t k, uint32_t count) {
  return k == count ? Selection<T>{0, 0xffffffffu, 0, 1} : Selection<T>{0, 0, k, 0};
}

template <class T>
struct SelectShared {
  uint32_t bins[kBins];
  uint32_t warp_sums[kSelectThreads / kWarp];
  uint32_t counter;
  Selection<T> selection;
};

// Where the digit of a pass begins. Digits of labels: bits 22-32, 11-21, 0-10.
template <class T>
__device__ inline int digit_shift(int pass) {
  const int above = pass < kRankPasses<T> ? 8 * static_cast<int>(sizeof(T)) - kDigitBits * pass
                                          : kDigitBits * (kPasses<T> - pass);
  return above > kDigitBits ? above - kDigitBits : 0;
}

// Counts the pairs that share the digits so far by the next one; bins in the order in which they are wanted.
// visit(f) calls f(whether there is a pair, rank, label) with whole warps.
template <class T, class Visit>
__device__ inline void count_digits(SelectShared<T>& shared, const Selection<T>& s, int pass,
                                    const Visit& visit) {
  for (int i = threadIdx.x; i < kBins; i += kSelectThreads) shared.bins[i] = 0;
  __syncthreads();
  const int shift = digit_shift<T>(pass);
  if (pass < kRankPasses<T>) {
    const int known = 8 * static_cast<int>(sizeof(T)) - kDigitBits * pass;  // digits above this bit
    visit([&](bool some, Rank<T> rank, uint32_t) {
      if (some && (pass == 0 || (rank ^ s.rank) >> known == 0))
        atomicAdd(&shared.bins[kBins - 1 - (static_cast<uint32_t>(rank >> shift) & (kBins - 1))], 1u);
    });
  } else {
    visit([&](bool some, Rank<T> rank, uint32_t label) {
      // Two shifts: shift + kDigitBits is 33 in the first of these passes.
      if (some && rank == s.rank && ((label ^ s.label) >> shift) >> kDigitBits == 0)
        atomicAdd(&shared.bins[(label >> shift) & (kBins - 1)], 1u);
    });
  }
  __syncthreads();
}

// Finds the bin of the last pair that is needed. Ends with all threads holding the same selection.
template <class T>
__device__ inline void choose_bin(SelectShared<T>& shared, Selection<T>& s, int pass) {
  constexpr int kEach = kBins / kSelectThreads;
  const int lane = lane_id(), warp = warp_id();
  uint32_t own = 0;
  for (int i = 0; i < kEach; ++i) own += shared.bins[threadIdx.x * kEach + i];
  uint32_t before = own;  // of the warp, up to this lane
  for (int step = 1; step < kWarp; step *= 2) {
    const uint32_t other = __shfl_up_sync(kAllLanes, before, step);
    if (lane >= step) before += other;
  }
  if (lane == kWarp - 1) shared.warp_sums[warp] = before;
  __syncthreads();
  before -= own;
  for (int i = 0; i < warp; ++i) before += shared.warp_sums[i];
  if (before < s.needed && s.needed - before <= own) {  // one thread
    int bin = threadIdx.x * kEach;
    while (before + shared.bins[bin] < s.needed) before += shared.bins[bin++];
    Selection<T> next = s;
    next.needed -= before;
    next.done = shared.bins[bin] == next.needed;
    const int shift = digit_shift<T>(pass);
    if (pass < kRankPasses<T>) {
      next.rank |= static_cast<Rank<T>>(kBins - 1 - bin) << shift;
      if (next.done) next.label = 0xffffffffu;
    } else {
      next.label |= static_cast<uint32_t>(bin) << shift;
      if (next.done) next.label |= (1u << shift) - 1;
    }
    shared.selection = next;
  }
  __syncthreads();
  s = shared.selection;
}

// The whole selection of k of `count` >= k pairs, by one block. label_end: above all labels.
template <class T, class Visit>
__device__ inline Selection<T> block_select(SelectShared<T>& shared, uint32_t k, uint32_t count,
                                            uint32_t label_end, const Visit& visit) {
  Selection<T> s = select_from<T>(k, count);
  for (int pass = 0; pass < kPasses<T> && !s.done; ++pass) {
    if (pass >= kRankPasses<T> && (label_end - 1) >> digit_shift<T>(pass) == 0 && pass + 1 < kPasses<T>)
      continue;
    count_digits(shared, s, pass, visit);
    choose_bin(shared, s, pass);
  }
  return s;
}

}  // namespace mach
