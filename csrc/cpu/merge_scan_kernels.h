// The loops of merge_topk's scan: bounds on the keys of many labels at once, in bytes.
//
// The byte table. For up to W documents and every (repetition, bucket) one row of W bytes, a document a byte:
// how far the bucket's score lies from an origin, in the document's own steps, rounded down, at most 255:
//   table[(r * B + b) * W + w] = min(255, floor((score - origin) * scale)),  0 where that is negative
// or, with scale 0, whether the score is *not* at least the origin (1 also for NaN).
// A label's R rows are added with saturation, all W documents in one instruction, and compared with a bound
// of each document.
//
// Codes can hold anything, for users can write to them, and to look at each would cost a twentieth of its
// row. So there is memory for table_rows() (merge_table.h): whatever a code of 16 bits says, a row is read. A
// label with a code from B on is then kept or dropped, which is the same: its exact key is NaN (merge_pairs),
// and a bound says that k labels have numbers.
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

// Labels that some document wants once repetitions [p.begin, p.end) are added: the label, the documents and
// the sums [., W], in the labels' order. Returns how many.
// scan_labels: labels [begin, end), sums from 0; arrays with room for one more than there are labels.
// scan_again: the `count` labels in the arrays, sums from there; the result takes their place.
template <class Isa, int W>
int64_t scan_labels(const ByteScan& p, int64_t begin, int64_t end, int32_t* labels, uint64_t* documents,
                    uint8_t* sums);
template <class Isa, int W>
int64_t scan_again(const ByteScan& p, int64_t count, int32_t* labels, uint64_t* documents, uint8_t* sums);

// alive[r] += labels of [begin, end) that some document still wants when repetitions [0, r] are added.
template <class Isa, int W>
void count_alive(const ByteScan& p, int64_t begin, int64_t end, int64_t* alive);

}  // namespace mach
