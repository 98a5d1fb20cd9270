// bucket_forward_int8: the bucket logits of R repetitions out of hidden units and weights of 8 bits,
//   z[n, r, b] = s(n, r) scale[r, b] sum_h q[n, r, h] weight[r, h, b] + bias[r, b].
// q = trunc(127 hidden / most + 1/2) is in [0, 127], s = most / 127, and most(n, r) is the greatest of the
// hidden units. Negative ones count as 0, for hidden units are outputs of relu. The sum is one of integers
// and therefore exact: no result depends on the instruction set, the threads or the other documents of a
// batch.
//
// q has 7 bits because AVX2 adds two products in 16 bits: 2 * 127 * 127 fits, 2 * 255 * 127 would not.
//
// Most hidden units of a document are 0. A word is 4 hidden units in a row. Only words with a unit above 0
// are kept in a list, and the weights of the other words are not read.
//
// Layout of the weight: [R, tiles, words, 64 buckets, 4 hidden units]. Buckets beyond B and hidden units
// beyond H are 0. A word of a tile is 256 bytes, and a tile of 256 hidden units is 16 KiB, which stay in the
// first-level cache for all documents.
#pragma once

#include <cstdint>

#include "isa.h"

namespace mach {

// AVX-512 with products of bytes (VNNI). Kernels of other files have no use for it.
struct Avx512Vnni {};

constexpr int64_t kTileBuckets = 64, kWordUnits = 4;

struct BucketForwardInt8 {
  const int8_t* weight;  // [R, tiles, words, 64, 4]
  const float* scale;    // [R, B]
  const float* bias;     // [R, B] or null
  int64_t R, B, tiles, words;
};

// The words of a block of documents that are not 0.
struct HiddenWords {
  uint32_t* units;    // [encoders, documents, words] 4 units each
  int32_t* at;        // [encoders, documents, words] which word it is
  int64_t* count;     // [encoders, documents]
  float* scale;       // [encoders, documents] s; NaN where a hidden unit is not finite
  int64_t encoders;   // 1, shared by the repetitions, or R
  int64_t documents;  // of the block
};

// Rounds hidden units [H] into a row of the words: of encoder e and document n it is e * documents + n.
template <class Isa>
void round_hidden(const float* hidden, int64_t H, const HiddenWords& words, int64_t row, int64_t num_words);

// Logits of the tiles [begin, end), of the R * tiles there are, for all documents of a block. `logits` is
// [documents, R, B].
template <class Isa>
void bucket_forward_int8(const BucketForwardInt8& p, const HiddenWords& words, float* logits, int64_t begin,
                         int64_t end);

}  // namespace mach
