// merge_topk's loops: bounds on the keys of many labels at once, in bytes. decode.cpp says what for.
//
// The byte table. For up to W documents and every (repetition, bucket) one row of W bytes, a document a byte:
// how far the bucket's score lies from an origin, in the document's own steps, rounded down, at most 255:
//   table[(r * B + b) * W + w] = min(255, floor((score - origin) * scale)),  0 where that is negative
// or, with scale 0, whether the score is *not* at least the origin (1 also for NaN).
// A label's R rows are added with saturation, all W documents in one instruction, and compared with a bound
// of each document.
//
// Codes can hold anything, for users can write to them, and to look at each would cost a twentieth of its
// row. So there is memory for table_rows(): whatever a code of 16 bits says, a row is read. A label with a
// code from B on is then kept or dropped, which is the same: its exact key is NaN (merge_pairs), and a bound
// says that k labels have numbers.
#pragma once

#include <cstdint>

#include "isa.h"
#include "label_index.h"

namespace mach {

// scores [B] -> bytes [B]
template <class Isa>
void quantize(const float* scores, int64_t B, float origin, float scale, uint8_t* bytes);

// columns [W, stride] -> rows [B, W], the first B <= stride bytes of each column
template <class Isa, int W>
void transpose_bytes(const uint8_t* columns, int64_t stride, int64_t B, uint8_t* rows);

// Rows to have memory for behind a table's first row, where it has `rows`, B a repetition.
constexpr int64_t table_rows(int64_t rows, int64_t B) { return rows + (B < kMaxCodes ? kMaxCodes - B : 0); }

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

// The exact sums of 16 documents at a time. Table: rows of 16 scores, a document each, [R, B, 16], and memory
// for table_rows().
constexpr int kSumLanes = 16;

// One repetition's scores of up to 16 documents (null: none, 0) -> rows [B, 16].
template <class Isa>
void interleave_scores(const float* const* scores, int64_t B, float* rows);

// Labels of [begin, end) with a sum s_0 + s_1 + ... + s_{R-1}, added in this order, above some document's
// `above`: the label, the documents (a bit each) and all 16 sums, with room for one more than there are
// labels. Returns how many.
template <class Isa>
int64_t sum_labels(const float* table, const uint16_t* codes, int64_t R, int64_t B, int64_t begin,
                   int64_t end, const float* above, int32_t* labels, uint32_t* documents, float* sums);

// documents[i] = 0 where a code of labels[i] is not below B, i < count: their sums are of no score.
template <class Isa>
void drop_unknown(const uint16_t* codes, int64_t R, int64_t B, const int32_t* labels, int64_t count,
                  uint32_t* documents);

// low[i], high[i]: least and greatest of scores[i], scores[i + 16], ... (+-inf where there is none). Returns
// whether all scores are below +inf and none is NaN.
template <class Isa>
bool lane_extremes(const float* scores, int64_t count, float* low, float* high);

// Positions of the values above the threshold, ascending, at most `room` of them; returns how many.
template <class Isa>
int64_t find_above(const float* values, int64_t count, float threshold, int32_t* positions, int64_t room);

// sums[label - first] += amount, saturating at 255, for the leading ones of the ascending labels that are
// within [first, stop); returns how many those are.
template <class Isa>
int64_t add_saturating(const int32_t* labels, int64_t count, int64_t first, int64_t stop, uint8_t* sums,
                       int amount);

// Positions of the sums of at least `bound` (> 0), ascending, with room for count + 1; all sums become 0.
// Returns how many.
template <class Isa>
int64_t take_at_least(uint8_t* sums, int64_t count, uint8_t bound, int32_t* positions);

}  // namespace mach
