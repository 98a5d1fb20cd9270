// The loops of merge_topk's scan: bounds on the keys of many labels at once, in bytes.
//
// The byte table has a row of W bytes for every (repetition, bucket), with a byte for each of up to W
// documents. A byte says how far the bucket's score is from an origin, in steps of the document, rounded
// down, at most 255:
//
//   table[(r * B + b) * W + w] = min(255, floor((score - origin) * scale)),  0 if that is negative
//
// With scale 0, the byte says whether the score is *not* at least the origin (1 also for NaN). The R rows of
// a label are added with saturation, all W documents in one instruction. The sums are then compared with a
// bound for each document.
//
// Users can write to the codes, so they can hold anything. A check of each code would cost a twentieth of its
// row. The table therefore has memory for table_rows() (merge_table.h), so that every 16-bit code reads a
// row. A label with a code that is not below B is then kept or dropped. Both are right: its exact key is NaN
// (merge_pairs), and a bound exists only if k labels have numbers as keys.
#pragma once

#include <cstdint>

#include "isa.h"

namespace mach {

// scores [B] -> bytes [B]
template <class Isa>
void quantize(const float* scores, int64_t B, float origin, float scale, uint8_t* bytes);

// columns [W, stride] -> rows [B, W], the first B <= stride bytes of each column
template <class Isa, int W>
void transpose_bytes(const uint8_t* columns, int64_t stride, int64_t B, uint8_t* rows);

struct ByteScan {
  const uint8_t* table;   // [R, B, W], table_rows() of memory
  const uint16_t* codes;  // [L, R]
  int64_t R, B;
  const uint8_t* bound;  // [W]
  uint64_t below;        // documents that want sums below their bound; the others: at least their bound
  int64_t begin, end;    // repetitions to add
};

// Find the labels that are still candidates of a document after repetitions [p.begin, p.end) are added. They
// write the label, its documents and the sums [., W], in the labels' order, and return how many there are.
// scan_labels searches labels [begin, end), with sums from 0. Its arrays have room for a label more than
// there are. scan_again searches the `count` labels in the arrays, with the sums from there, and replaces
// them.
template <class Isa, int W>
int64_t scan_labels(const ByteScan& p, int64_t begin, int64_t end, int32_t* labels, uint64_t* documents,
                    uint8_t* sums);
template <class Isa, int W>
int64_t scan_again(const ByteScan& p, int64_t count, int32_t* labels, uint64_t* documents, uint8_t* sums);

// Adds to alive[r] how many labels of [begin, end) are still candidates after repetitions [0, r] are added.
template <class Isa, int W>
void count_alive(const ByteScan& p, int64_t begin, int64_t end, int64_t* alive);

}  // namespace mach
