// bucket_backward: the two products of a repetition's backward pass, for a gradient G [N, B] to the logits of
// which most entries are negligible:
//
//   grad_hidden += G' W^T,  grad_weight = hidden^T G'.
//
// G' equals G except for the negligible entries, 0 <= G < negligible. A rank-one matrix replaces all of them
// together: row column^T / total. Here row are their sums by document, column their sums by bucket, and total
// the sum of all. So no part of the gradient is lost. It is only redistributed among the negligible entries
// of a document, in proportion to the bucket's sum. If these entries were dropped, the buckets would lose
// most of the gradient that keeps their logits low. G' is therefore that rank-one matrix over all of [N, B],
// which costs as much as two vectors, plus a sparse matrix at the E kept entries.
//
// Both products go over tiles of kTile<Isa> hidden units. The weight is transposed within a tile, so that
// vectors run over hidden units. Each thread owns its tiles, so no sum depends on the number of threads.
#pragma once

#include <cstdint>

#include "isa.h"

namespace mach {

// Hidden units of a tile: a register of floats. Each unit has its own sum, so the bits do not depend on the
// size.
template <class Isa>
constexpr int64_t kTile = std::is_same_v<Isa, Avx512> ? 16
                          : std::is_same_v<Isa, Avx2> ? 8
                                                      : 4;

template <class T>
struct BucketBackward {
  const T* gradient;  // G [N, B], rows contiguous
  const T* hidden;    // [N, H], rows hidden_stride apart
  const T* weight;    // [H, B]
  int64_t hidden_stride, N, H, B;
  T negligible;
  T* grad_hidden;  // [N, H], rows grad_hidden_stride apart
  int64_t grad_hidden_stride;
  T* grad_weight;  // [H, B]
};

// The split of G. Kept entries by document (CSR) and by bucket (CSC), both in ascending order.
template <class T>
struct SplitGradient {
  T* row;                      // [N] sums of negligible entries by document, later divided by the total
  T* column;                   // [B] the same by bucket
  int64_t* document_offset;    // [N + 1]
  int64_t* bucket_offset;      // [B + 1]
  int32_t* bucket;             // [E] of the kept entries by document
  int32_t* document;           // [E] of the kept entries by bucket
  T *by_document, *by_bucket;  // [E] their values less the rank-one matrix's
};

// column[b], buckets [begin, end).
template <class Isa, class T>
void negligible_columns(const BucketBackward<T>& p, T* column, int64_t begin, int64_t end);

// row[n], and the kept entries' buckets into kept[n, 0 ... count[n]), kept [N, B]; documents [begin, end).
template <class Isa, class T>
void negligible_rows(const BucketBackward<T>& p, T* row, int32_t* kept, int64_t* count, int64_t begin,
                     int64_t end);

// The kept entries of `kept` into s, whose row, column and document_offset are complete.
template <class Isa, class T>
void split_gradient(const BucketBackward<T>& p, const int32_t* kept, const SplitGradient<T>& s);

// Tiles [begin, end) of ceil(H / kTile). Scratch of the calling thread: (N + B) * kTile.
template <class Isa, class T>
void bucket_backward(const BucketBackward<T>& p, const SplitGradient<T>& s, T* scratch, int64_t begin,
                     int64_t end);

}  // namespace mach
