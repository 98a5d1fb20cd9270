// CUDA twin of cpu/merge_topk.h: the exact k best labels of each document over all L.
//
// A block goes over the exact keys of a document's labels several times (select.cuh) and computes them anew
// each time. Nothing of size N x L is ever held. After a scan (merge_scan.cuh and merge_parts.cuh) the block
// goes over the few labels that are left of a document. Without one, if there are fewer documents than the
// GPU has room for, several blocks share a document, with a launch for each pass.
#pragma once

#include "merge_scores.cuh"

namespace mach {

constexpr int64_t kMaxOrdered = 2048;  // up to this k, launch_merge_topk leaves the labels in order
constexpr int64_t kBlocks = 264;       // that a large GPU has room for at once

// Labels of each document that its first k are surely among.
struct Candidates {
  int32_t* labels;   // [N, capacity]
  uint32_t* ranks;   // [N, capacity] scratch
  uint32_t* counts;  // [N] of the scan or the lists; outside [k, capacity]: they are not candidates
  int64_t capacity;
  int32_t* work;       // [N, kTraceColumns] what it took to find them
  uint32_t* gathered;  // [N] of documents without candidates: labels that merge_parts.cuh left in their place

  __device__ bool complete(int64_t n, int64_t k) const { return counts[n] >= k && counts[n] <= capacity; }
  __device__ uint32_t count(int64_t n, int64_t k) const { return complete(n, k) ? counts[n] : gathered[n]; }
};

template <class T>
struct MergeTopKParams {
  MergeInput<T> merge;
  int64_t k;              // 1 <= k <= L
  Candidates candidates;  // labels null: none
  int blocks;             // that share a document: blocks_per_document(), 1 with candidates
  void* shared;           // where blocks > 1: shared_bytes() of scratch, all zero
  T* values;              // [N, k]; not written where k > kMaxOrdered
  int64_t* labels;        // [N, k]; in no order where k > kMaxOrdered
  int64_t* trace;         // [N, kTraceColumns] or null
};

int blocks_per_document(int64_t N, int64_t L);
int64_t shared_bytes(int64_t N);  // of N documents that are shared by several blocks

template <class T>
cudaError_t launch_merge_topk(const MergeTopKParams<T>& params, cudaStream_t stream);

}  // namespace mach
