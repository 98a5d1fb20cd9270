#include <cuda_pipeline_primitives.h>

#include <algorithm>
#include <cmath>

#include "merge_extremes.cuh"
#include "merge_scan.cuh"
#include "select.cuh"

namespace mach {
namespace {

constexpr int kThreads = 256;             // of the small kernels
constexpr int kScanThreads = 512;         // one block a multiprocessor: half of its registers hold sums
constexpr int kLabels = 8;                // a thread's, in the scan: their codes are one load of 16 bytes
constexpr int kDocuments = 16;            // of an entry of the table, a byte each
constexpr int kWide = 4;                  // entries of a row of the table where it is read from global memory
constexpr int64_t kSharedBuckets = 4096;  // up to so many the table is read from shared memory
constexpr int64_t kListed = 1024;         // labels of best buckets in the sample
constexpr int64_t kTableChunk = 1024;     // buckets of a block of the table's kernel
constexpr int kCheck = 4;                 // repetitions between two looks at the sums
constexpr uint16_t kNever = 0x7fff;       // a bound that no sum meets

// Sizes and places in the scratch.
struct Scan {
  MergeScanParams p;
  int64_t run, each;  // the sample: labels [0, run), up to `each` of every repetition's best bucket
  int64_t capacity;   // candidates of a document
  int64_t rows;       // places for documents: whole rows of the table
  int wide;           // entries of a row, 1 or kWide, where there are enough documents
  bool from_shared;   // the table goes through shared memory, a repetition at a time
  float clip;         // greatest byte
  GivenExtremes extremes;
  // The documents that are scanned have places, [0, *left), in no particular order.
  uint32_t* left;
  int32_t* documents;    // [N] by place
  uint32_t* thresholds;  // [N] by document: a rank that k labels have, or 0
  // [rows] steps a unit of score: under high, or, where positive, above low. Min, median: the threshold.
  float* scale;
  uint16_t* bounds;  // [rows / 16, 16], half_of() the place, plus 2^15
  uint32_t* sample;  // [N, run + R * each] ranks
  uint4* table;      // [rows / 16 / wide, R, B, wide]
  Candidates candidates;
  int64_t bytes;
};

// The sums of an entry's 16 documents lie in 8 registers as pairs of 16 bits: 0, 2 | 4, 6 | ... | 1, 3 | ...
__host__ __device__ inline int half_of(int document) {
  return (document & 1) * 8 + document / 4 * 2 + (document / 2 & 1);
}

// found: where the extremes kernel has to write, its scores aside.
Scan make_scan(const MergeScanParams& p, MergeExtremesParams& found) {
  const MergeInput<float>& m = p.merge;
  Scan s{};
  s.p = p;
  const int64_t N = m.N, R = m.R, B = m.B, L = m.L;
  // With a sample of M labels about k L / M others come above its k-th best: they cost as much as the sample.
  const auto balanced = static_cast<int64_t>(std::sqrt(static_cast<double>(p.k) * static_cast<double>(L)));
  s.each = std::max<int64_t>(4, kListed / R);
  const int64_t listed = std::min(s.each, L / B) * R;
  s.run = std::min(L, std::max<int64_t>(256, std::min<int64_t>(balanced - listed, 1 << 14)));
  s.capacity = std::min(L, 2048 + std::min<int64_t>(4 * balanced, 1 << 16));
  // Read from shared memory, an entry costs some 10 cycles a warp, but the table has to be brought there for
  // every kScanThreads * kLabels labels: with more than kSharedBuckets that costs more than it saves.
  const int64_t shared = 2 * B * static_cast<int64_t>(sizeof(uint4));
  s.from_shared = B <= kSharedBuckets && shared <= device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  s.wide = s.from_shared || N <= kDocuments ? 1 : kWide;
  s.rows = (N + kDocuments * s.wide - 1) / (kDocuments * s.wide) * (kDocuments * s.wide);
  s.clip = static_cast<float>(m.merge == Merge::mean ? std::min<int64_t>(255, 32767 / R) : 1);
  const auto take = [&](auto*& pointer, int64_t count) {
    const auto address = reinterpret_cast<uintptr_t>(p.scratch) + static_cast<uintptr_t>(s.bytes);
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(address);
    s.bytes += (count * static_cast<int64_t>(sizeof *pointer) + 15) / 16 * 16;
  };
  take(s.table, s.rows / kDocuments * R * B);
  take(s.bounds, s.rows);
  take(found.high, N * R);
  take(found.low, N * R);
  take(found.best, N * R);
  take(found.peaks, N * R * num_peaks(B));
  take(s.left, 1);
  take(s.documents, N);
  take(s.thresholds, N);
  take(s.scale, s.rows);
  take(s.sample, N * (s.run + R * s.each));
  take(s.candidates.labels, N * s.capacity);
  take(s.candidates.ranks, N * s.capacity);
  take(s.candidates.counts, N);
  take(s.candidates.work, N * kTraceColumns);
  take(s.candidates.gathered, N);
  s.candidates.capacity = s.capacity;
  s.extremes = p.given.high ? p.given : GivenExtremes{found.high, found.low, found.best, found.peaks};
  found.left = s.left;
  if (p.lists == Lists::none) found.peaks = nullptr;
  return s;
}

// --------------------------------------------------------------------------------------------- sample

// The entries of the sample that come from a list: `taken` of its labels, from `begin` on and round its end.
// Not the same part of all lists: lists ascend, so that would be the same part of all labels.
struct Listed {
  const int32_t* labels;
  int64_t count, begin, taken;

  __device__ Listed(const Scan& s, int repetition, int32_t bucket) {
    const MergeInput<float>& m = s.p.merge;
    if (bucket < 0 || bucket >= m.B) bucket = 0;  // of extremes that were given
    const List list = list_of(s.p.list_starts + repetition * (m.B + 1) + bucket, m.L);
    labels = s.p.list_labels + repetition * m.L + list.first;
    count = list.count;
    begin = count * repetition / m.R;
    taken = count < s.each ? count : s.each;
  }
  __device__ int64_t label(int64_t at) const {
    const int64_t place = begin + at;
    return labels[place < count ? place : place - count];
  }
  // Of a label of this list.
  __device__ bool takes(int64_t candidate) const {
    if (taken == count) return true;
    const int64_t first = label(0), last = label(taken - 1);
    return first <= last ? first <= candidate && candidate <= last : first <= candidate || candidate <= last;
  }
};

// The rank of sample entry i of document n; 0 where there is no label, or one that is counted elsewhere: in
// the run, or with an earlier repetition.
__device__ uint32_t sample_rank(const Scan& s, int64_t n, int64_t i) {
  const MergeInput<float>& m = s.p.merge;
  const int32_t* best = s.extremes.best + n * m.R;
  const int R = static_cast<int>(m.R);
  int source = 0;
  int64_t label = i;
  if (i >= s.run) {
    source = static_cast<int>((i - s.run) / s.each);
    const int64_t at = (i - s.run) - source * s.each;
    const Listed list(s, source, best[source]);
    if (at >= list.taken) return 0;
    label = list.label(at);
    if (label < s.run || label >= m.L) return 0;
  }
  const float* scores = m.scores + n * m.document_stride;
  const uint16_t* code = s.p.codes + label;
  float sum = 0;
  bool listed = false;  // of a repetition before, perhaps among the labels that are taken
#pragma unroll 8
  for (int r = 0; r < R; ++r) {
    const int bucket = code[r * s.p.code_stride];
    const float x = bucket < m.B ? scores[r * m.repetition_stride + bucket] : __int_as_float(0x7fc00000);
    sum = r == 0 ? x : sum + x;
    listed = listed || (r < source && bucket == best[r]);
  }
  if (listed) {
#pragma unroll 1
    for (int r = 0; r < source; ++r)
      if (code[r * s.p.code_stride] == best[r] && Listed(s, r, best[r]).takes(label)) return 0;
  }
  return rank_of(m.merge == Merge::mean ? sum / static_cast<float>(R) : merge_key(m, n, label));
}

__global__ void __launch_bounds__(kThreads) sample_kernel(const Scan s) {
  const int64_t size = s.run + s.p.merge.R * s.each, stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < *s.left * size; i += stride)
    s.sample[i] = sample_rank(s, s.documents[i / size], i % size);
}

// ----------------------------------------------------------------------------------------------- plan

struct PlanShared {
  SelectShared<float> select;
  double sum_high, sum_low, slack_high;
  float high[kMaxScanRepetitions], low[kMaxScanRepetitions];
};

// The bound for threshold theta, and the scale; kNever where the scan is of no use.
__device__ uint16_t bound_of(const Scan& s, const PlanShared& shared, double theta, float* scale) {
  const int R = static_cast<int>(s.p.merge.R);
  if (s.p.merge.merge != Merge::mean) {
    // How many scores may lie below theta: none (min); half of them, so that the middle one, or the upper of
    // the middle two, does not (median). Half of the middle two's sum is not above the upper one.
    *scale = static_cast<float>(theta);
    return static_cast<uint16_t>(0x8000 + (s.p.merge.merge == Merge::min ? 0 : R / 2));
  }
  const double err = slack(R, theta, shared.slack_high), wanted = R * theta - err;
  const double down = shared.sum_high - wanted, up = wanted - shared.sum_low;
  // Sums that can't be told apart, or distances that overflow in fp32.
  if (!(shared.sum_high - shared.sum_low > 8 * err) || !(down < 1e37)) return kNever;
  constexpr double kRounding = 1e-3;  // of a byte's fp32 arithmetic: 255 * 2^-22
  const double clip = s.clip;
  if (up > 0 && down > 16 * up) {
    // The threshold is far nearer to `low`: some score far above all others would make steps under `high`
    // useless. Steps above low, turned round: clip - step. One clipped step is enough for a candidate.
    const double unit = fmax(up / (0.63 * clip), 1e-30);
    *scale = static_cast<float>(1 / unit);
    const double least = floor(up / unit - R - kRounding * R);  // each step may have lost almost one
    return static_cast<uint16_t>(0x8000 + static_cast<int>(R * clip - fmax(least, 0.0)));
  }
  // R / 8 bytes at their greatest are up to the bound. Finer steps would tell labels apart by less than they
  // cost: it would take more repetitions until nobody wants a label any more. A threshold below the low
  // scores has outliers in it: as many of them as it has must be all that the bound allows.
  const double unit = fmax(down / ((clip - 2) * (up > 0 ? fmax(1.0, R / 8.0) : 1)), 1e-30);
  *scale = static_cast<float>(-1 / unit);
  return static_cast<uint16_t>(0x8000 + static_cast<int>(floor(fmax(down, 0.0) / unit + kRounding * R)));
}

// One block a place.
__global__ void __launch_bounds__(kSelectThreads, 2) plan_kernel(const Scan s) {
  auto& shared = *dynamic_shared<PlanShared>();
  const MergeInput<float>& m = s.p.merge;
  const int R = static_cast<int>(m.R);
  const int64_t size = s.run + R * s.each;
  for (int64_t place = blockIdx.x; place < s.rows; place += gridDim.x) {
    uint16_t bound = kNever;
    float scale = 0;
    const bool taken = place < *s.left;
    const int64_t n = taken ? s.documents[place] : 0;
    if (taken) {
      for (int r = threadIdx.x; r < R; r += kSelectThreads) {
        shared.high[r] = s.extremes.high[n * R + r];
        shared.low[r] = s.extremes.low[n * R + r];
      }
      __syncthreads();
      if (threadIdx.x == 0) {
        double high = 0, low = 0, slack_high = 0;
        for (int r = 0; r < R; ++r) {
          high += shared.high[r];
          low += shared.low[r];
          slack_high += shared.high[r] > 0 ? shared.high[r] : 0;
        }
        shared.sum_high = high;
        shared.sum_low = low;
        shared.slack_high = slack_high;
        shared.select.counter = 0xffffffffu;
      }
      __syncthreads();
      if (sums_hold(shared.sum_high, shared.slack_high) && size >= s.p.k) {
        const uint32_t* sample = s.sample + place * size;
        const auto visit = [&](const auto& f) {
          for (int64_t begin = 0; begin < size; begin += kSelectThreads) {
            const int64_t i = begin + threadIdx.x;
            f(i < size, i < size ? sample[i] : 0, 0);
          }
        };
        Selection<float> selection =
            select_from<float>(static_cast<uint32_t>(s.p.k), static_cast<uint32_t>(size));
        for (int pass = 0; pass < kRankPasses<float> && !selection.done; ++pass) {
          count_digits(shared.select, selection, pass, visit);
          choose_bin(shared.select, selection, pass);
        }
        // Those above selection.rank are k or more; the least of them is the k-th.
        uint32_t least = 0xffffffffu;
        visit([&](bool some, uint32_t rank, uint32_t) {
          if (some && rank >= selection.rank && rank < least) least = rank;
        });
        atomicMin(&shared.select.counter, least);
        __syncthreads();
        const uint32_t before = s.thresholds[n];
        const float theta = key_of(shared.select.counter > before ? shared.select.counter : before);
        if (fabsf(theta) < INFINITY) bound = bound_of(s, shared, theta, &scale);
      }
    }
    if (threadIdx.x == 0) {
      s.bounds[place / kDocuments * kDocuments + half_of(static_cast<int>(place % kDocuments))] = bound;
      s.scale[place] = scale;
      if (taken) s.candidates.counts[n] = bound == kNever ? 0xffffffffu : 0;
    }
    __syncthreads();
  }
}

// ---------------------------------------------------------------------------------------------- table

struct Line {
  const float* scores;
  float origin, scale;  // both 0 for a place that nobody has
};

// Entries of a row, now that it is known how many documents there are.
__device__ inline int entries_of(const Scan& s) { return *s.left <= kDocuments ? 1 : s.wide; }

// Rows of the table that have documents.
__device__ inline int64_t rows_taken(const Scan& s, int wide) {
  const int64_t documents = kDocuments * wide;
  return (static_cast<int64_t>(*s.left) + documents - 1) / documents;
}

// A block: 16 documents, a repetition, a chunk of its buckets. Each document's scores are read in order.
__global__ void __launch_bounds__(kThreads) table_kernel(const Scan s) {
  auto* lines = dynamic_shared<Line>();
  const MergeInput<float>& m = s.p.merge;
  const int64_t chunks = (m.B + kTableChunk - 1) / kTableChunk, wide = entries_of(s),
                groups = rows_taken(s, wide) * wide;
  for (int64_t block = blockIdx.x; block < groups * m.R * chunks; block += gridDim.x) {
    const int64_t chunk = block % chunks, r = block / chunks % m.R, group = block / chunks / m.R;
    if (threadIdx.x < kDocuments) {
      const int64_t place = group * kDocuments + threadIdx.x;
      const bool taken = place < *s.left;
      const int64_t n = s.documents[taken ? place : 0];
      Line line{m.scores + n * m.document_stride + r * m.repetition_stride, 0, 0};
      if (taken) {
        line.scale = s.scale[place];
        line.origin = (line.scale > 0 ? s.extremes.low : s.extremes.high)[n * m.R + r];
        if (m.merge != Merge::mean) {  // any distance below the threshold is beyond the one step there is
          line.origin = s.scale[place];
          line.scale = -INFINITY;
        }
      }
      lines[threadIdx.x] = line;
    }
    __syncthreads();
    const int64_t end = m.B < (chunk + 1) * kTableChunk ? m.B : (chunk + 1) * kTableChunk;
    uint4* rows = s.table + (group / wide * m.R + r) * m.B * wide + group % wide;
    for (int64_t b = chunk * kTableChunk + threadIdx.x; b < end; b += kThreads) {
      float x[kDocuments];
#pragma unroll
      for (int i = 0; i < kDocuments; ++i) x[i] = lines[i].scores[b];
      uint32_t words[kDocuments / 4] = {};
#pragma unroll
      for (int i = 0; i < kDocuments; ++i) {
        const float origin = lines[i].origin, scale = lines[i].scale;
        float steps = (x[i] - origin) * scale;
        steps = steps > 0 ? steps : 0;
        steps = steps < s.clip ? steps : s.clip;
        if (scale > 0) steps = s.clip - truncf(steps);
        words[i / 4] |= static_cast<uint32_t>(steps) << (8 * (i % 4));
      }
      rows[b * wide] = make_uint4(words[0], words[1], words[2], words[3]);
    }
    __syncthreads();
  }
}

// ----------------------------------------------------------------------------------------------- scan

// For all that a thread copies to shared memory in the background.
__device__ __forceinline__ void wait_for_copies() {
  __pipeline_commit();
  __pipeline_wait_prior(0);
}

__device__ __forceinline__ uint32_t component(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// Sums of an entry's 16 documents, by words of the entry: of all bytes as one number modulo 2^32, and of the
// odd bytes, which tells those of the even ones.
struct Sums {
  uint32_t all[4], odd[4];

  __device__ __forceinline__ void add(const uint4& entry) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const uint32_t bytes = component(entry, w);
      all[w] += bytes;
      odd[w] += __byte_perm(bytes, 0, 0x4341);  // bytes 1 and 3, each in 16 bits
    }
  }

  // bounds - sums, in pairs: the top bit of 16 says that the sum is up to the bound. Documents 4 w and 4 w +
  // 2, 4 w + 1 and 4 w + 3.
  __device__ __forceinline__ uint32_t even_left(const uint4& even_bounds, int w) const {
    return component(even_bounds, w) - (all[w] - (odd[w] << 8));
  }
  __device__ __forceinline__ uint32_t odd_left(const uint4& odd_bounds, int w) const {
    return component(odd_bounds, w) - odd[w];
  }

  // Not 0 where some document's sum is up to its bound.
  __device__ __forceinline__ uint32_t any_left(const uint4& even_bounds, const uint4& odd_bounds) const {
    uint32_t any = 0;
#pragma unroll
    for (int w = 0; w < 4; ++w) any |= even_left(even_bounds, w) | odd_left(odd_bounds, w);
    return any & 0x80008000u;
  }
};

// Bounds that another block may be setting to kNever: past the first-level cache.
__device__ __forceinline__ uint4 load_bounds(const uint32_t* bounds) {
  return __ldcg(reinterpret_cast<const uint4*>(bounds));
}

// kNever into a half, by steps that each leave the other half alone; in between every sum meets the bound.
__device__ __forceinline__ void withdraw(uint32_t* bounds, int half) {
  const int shift = 16 * (half % 2);
  atomicOr(&bounds[half / 2], static_cast<uint32_t>(kNever) << shift);
  atomicAnd(&bounds[half / 2], ~(0x8000u << shift));
}

// A block goes through tiles of labels, a tile through the repetitions; a thread holds the sums of 8 labels
// for the 16 documents of an entry. Sums only grow: every few repetitions it is asked whether any document
// still wants one of them. Where scores are peaky, mostly none does.
//
//   shared memory   an entry is a row. The table of the next repetition (or of the next tile's first) is
//                   brought in while this one's is read. A warp's read is taken to cost 10.4
//                   cycles; per 4096 labels and repetition that is 1330, the copy's write 0.125 B, and the
//                   copy 16 B bytes through the L2.
//   global memory   rows of four entries for four lanes, 64 bytes: as many loads of 16 bytes in flight as a
//                   thread has labels.
//
// A code from B on, as in codes that were written to, reads the last row. Its label may then be a candidate
// or not: its exact key is NaN, and a threshold says that k labels are numbers.
template <bool kFromShared>
__global__ void __launch_bounds__(kScanThreads, 1) scan_kernel(const Scan s) {
  const MergeInput<float>& m = s.p.merge;
  const int R = static_cast<int>(m.R), wide = kFromShared ? 1 : entries_of(s);
  const int part = static_cast<int>(threadIdx.x) % wide, slot = static_cast<int>(threadIdx.x) / wide;
  const uint32_t tile_labels = kScanThreads / wide * kLabels;
  const auto tiles = static_cast<uint32_t>((m.L + tile_labels - 1) / tile_labels);
  const auto items = static_cast<uint32_t>(rows_taken(s, wide)) * tiles;
  const auto first = static_cast<uint32_t>(static_cast<uint64_t>(items) * blockIdx.x / gridDim.x);
  const auto last = static_cast<uint32_t>(static_cast<uint64_t>(items) * (blockIdx.x + 1) / gridDim.x);
  const int64_t table_size = m.B * wide;  // entries of a repetition
  const auto last_code = static_cast<uint32_t>(m.B - 1);
  uint4* buffers = dynamic_shared<uint4>();
  int turn = 0;

  // What an item reads in repetition 0.
  const auto table_of = [&](uint32_t item) { return s.table + item / tiles * R * table_size; };
  const auto label_of = [&](uint32_t item) {
    return static_cast<int64_t>(item % tiles) * tile_labels + slot * kLabels;
  };
  // Beyond the last label: those of the first ones, to no effect.
  const auto codes_of = [&](int64_t label) { return s.p.codes + (label < m.L ? label : 0); };
  const auto load_codes = [](const uint16_t* codes) { return *reinterpret_cast<const uint4*>(codes); };
  const auto fetch = [&](const uint4* from, uint4* to) {
    for (int i = threadIdx.x; i < static_cast<int>(table_size); i += kScanThreads)
      __pipeline_memcpy_async(to + i, from + i, sizeof(uint4));
  };

  if (first == last) return;
  const uint4* table = table_of(first);
  const uint16_t* codes = codes_of(label_of(first));
  if (kFromShared) fetch(table, buffers);
  uint4 next = load_codes(codes);
  for (uint32_t item = first; item < last; ++item) {
    const uint4* next_table = item + 1 < last ? table_of(item + 1) : nullptr;
    const uint16_t* next_codes = codes_of(item + 1 < last ? label_of(item + 1) : 0);
    const int64_t entry = static_cast<int64_t>(item / tiles) * wide + part;  // which 16 documents
    uint32_t* bounds = reinterpret_cast<uint32_t*>(s.bounds) + entry * (kDocuments / 2);
    Sums sums[kLabels] = {};
    bool wanted = true;
    for (int r = 0; r < R; ++r) {
      const bool check = r > 0 && r % kCheck == 0;
      if (check) {
        const uint4 even_bounds = load_bounds(bounds), odd_bounds = load_bounds(bounds + 4);
        uint32_t any = 0;
#pragma unroll
        for (int q = 0; q < kLabels; ++q) any |= sums[q].any_left(even_bounds, odd_bounds);
        wanted = any != 0;
      }
      if (kFromShared) {
        // Then all of this repetition's table is there, and nobody reads the one before any more.
        wait_for_copies();
        if (check)
          wanted = __syncthreads_or(wanted);
        else
          __syncthreads();
      } else if (check) {
        wanted = __any_sync(kAllLanes, wanted);
      }
      if (!wanted) {  // by any document, nor will it be: on to the next item
        table = next_table;
        codes = next_codes;
        next = load_codes(codes);
        if (kFromShared && table) fetch(table, buffers + turn * table_size);
        break;
      }
      const uint4 now = next;
      codes = r + 1 < R ? codes + s.p.code_stride : next_codes;
      next = load_codes(codes);
      const uint4* rows = table + part;
      table = r + 1 < R ? table + table_size : next_table;
      if (kFromShared) {
        rows = buffers + turn * table_size;
        turn ^= 1;
        if (table) fetch(table, buffers + turn * table_size);
      }
#pragma unroll
      for (int q = 0; q < kLabels; ++q) {
        const uint32_t code = component(now, q / 2) >> (16 * (q % 2)) & 0xffff;
        sums[q].add(rows[(code < last_code ? code : last_code) * wide]);
      }
    }
    if (!wanted) continue;
    const int64_t label = label_of(item);
    const uint4 even_bounds = load_bounds(bounds), odd_bounds = load_bounds(bounds + 4);
#pragma unroll
    for (int q = 0; q < kLabels; ++q) {
      if (sums[q].any_left(even_bounds, odd_bounds) == 0 || label + q >= m.L) continue;
      uint32_t documents = 0;
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const uint32_t even = sums[q].even_left(even_bounds, w), odd = sums[q].odd_left(odd_bounds, w);
        documents |= (even >> 15 & 1) << (4 * w) | even >> 31 << (4 * w + 2);
        documents |= (odd >> 15 & 1) << (4 * w + 1) | odd >> 31 << (4 * w + 3);
      }
      for (; documents; documents &= documents - 1) {
        const int i = __ffs(static_cast<int>(documents)) - 1;
        const int64_t n = s.documents[entry * kDocuments + i];
        const uint32_t at = atomicAdd(&s.candidates.counts[n], 1u);
        if (at < s.capacity) s.candidates.labels[n * s.capacity + at] = static_cast<int32_t>(label + q);
        if (at == s.capacity) withdraw(bounds, half_of(i));  // it gets all of its labels: no need to go on
      }
    }
  }
}

unsigned at_most(int64_t blocks) { return static_cast<unsigned>(std::min<int64_t>(blocks, 1 << 20)); }

}  // namespace

int64_t scan_scratch_bytes(int64_t N, int64_t R, int64_t B, int64_t L, int64_t k) {
  MergeScanParams p{};
  p.merge.N = N;
  p.merge.R = R;
  p.merge.B = B;
  p.merge.L = L;
  p.k = k;
  MergeExtremesParams found{};
  return make_scan(p, found).bytes;
}

cudaError_t launch_merge_scan(const MergeScanParams& params, Candidates* candidates, cudaStream_t stream) {
  const MergeInput<float>& m = params.merge;
  MergeExtremesParams found{m, nullptr, nullptr, nullptr, nullptr, nullptr};
  const Scan s = make_scan(params, found);
  *candidates = s.candidates;
  cudaError_t error = params.given.high ? cudaMemsetAsync(s.left, 0, sizeof *s.left, stream)
                                        : launch_merge_extremes(found, stream);
  if (error != cudaSuccess) return error;
  const int64_t sampled = m.N * (s.run + m.R * s.each);
  error =
      launch_merge_lists({m, params.k, params.lists, params.list_starts, params.list_labels, s.extremes.high,
                          s.extremes.low, s.extremes.peaks, std::min(m.L, s.run + m.R * s.each), s.candidates,
                          s.left, s.documents, s.thresholds},
                         stream);
  if (error != cudaSuccess) return error;
  error = MACH_LAUNCH(sample_kernel, at_most((sampled + kThreads - 1) / kThreads), kThreads, 0, stream, s);
  if (error != cudaSuccess) return error;
  error = MACH_LAUNCH(plan_kernel, at_most(s.rows), kSelectThreads, sizeof(PlanShared), stream, s);
  if (error != cudaSuccess) return error;
  const int64_t chunks = (m.B + kTableChunk - 1) / kTableChunk;
  error = MACH_LAUNCH(table_kernel, at_most(s.rows / kDocuments * m.R * chunks), kThreads,
                      kDocuments * sizeof(Line), stream, s);
  if (error != cudaSuccess) return error;
  const int64_t tile_labels = kScanThreads / s.wide * kLabels;
  const int64_t items = s.rows / (kDocuments * s.wide) * ((m.L + tile_labels - 1) / tile_labels);
  const int64_t room = std::max(1, device_attribute(cudaDevAttrMultiProcessorCount));
  const auto blocks = static_cast<unsigned>(std::min(items, room));
  if (s.from_shared)
    return MACH_LAUNCH((scan_kernel<true>), blocks, kScanThreads, 2 * m.B * sizeof(uint4), stream, s);
  return MACH_LAUNCH((scan_kernel<false>), blocks, kScanThreads, 0, stream, s);
}

}  // namespace mach
