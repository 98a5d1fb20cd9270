// Work: 2 N G B H flops. N = 256, H = 512, G = 8, B = 2000 are 4.2 Gflop: 7 us at 600 Tflop/s, which a good
// mma.sync kernel reaches on an H100. The training epilogue is about 115 instructions a logit, 15 of them to
// find the positives. For these 4.1 M logits that is 16 us of all 132 SMs, more than the product. The weight
// [G, B, H] comes from memory once: 16 MB, 4 us at 4.3 TB/s. The gradient goes back once: 8 MB. Logits as a
// tensor would cross memory or L2 three times, with 4 bytes each. These are predictions. No GPU has run this
// kernel.
//
// Tile: a block of 128 documents and 256 buckets reads (128 + 256) H 2 bytes for 2 * 128 * 256 H flops: 85
// flops a byte of L2, four thirds of what a tile of 128 x 128 has. Eight warps hold 64 x 64 logits each, 128
// registers a thread. A block is alone on its SM then, so the copies of two more stages are under way while
// one is multiplied. Documents run fastest over the grid: blocks that run together share a tile of the
// weight.
#include <cuda_bf16.h>
#include <cuda_pipeline_primitives.h>

#include <cmath>

#include "bucket_forward.cuh"
#include "device.cuh"
#include "mma.cuh"

namespace mach {
namespace {

struct Gpu {};  // for numeric.h, an instruction set

// Kernels are empty where there is no mma of bfloat16. Nothing launches them there (has_bf16_mma).
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr bool kHasMma = false;
#else
constexpr bool kHasMma = true;
#endif

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kStep = 32;                        // hidden units of a stage
constexpr int kRowBytes = kStep * sizeof(bf16);  // of a document or a bucket in a stage
constexpr int kHiddenBytes = kForwardDocuments * kRowBytes;
constexpr int kStageBytes = kHiddenBytes + kForwardBuckets * kRowBytes;
constexpr int kWarpDocuments = 64, kWarpBuckets = 64;
constexpr int kWarpsOfBuckets = kForwardBuckets / kWarpBuckets;  // warp w: documents w / 4, buckets w % 4
constexpr int kDocumentTiles = kWarpDocuments / 16, kPairs = kWarpBuckets / 16;
constexpr int kLaneDocuments = kWarpDocuments / 8;  // rows of a lane: lane / 4, lane / 4 + 8, ...
constexpr int kWords = kForwardBuckets / 32;        // of bits a document

// A lane's logits: [tile of 16 documents][tile of 8 buckets][entry of D, mma.cuh].
using Logits = float[kDocumentTiles][2 * kPairs][4];

// The tile of a block.
struct Tile {
  int64_t document_tile, bucket_tile, g, first_document, first_bucket;

  __device__ explicit Tile(const BucketForwardParams& p) {
    const int64_t i = blockIdx.x, rest = i / p.document_tiles();
    document_tile = i - rest * p.document_tiles();
    g = rest / p.bucket_tiles();
    bucket_tile = rest - g * p.bucket_tiles();
    first_document = document_tile * kForwardDocuments;
    first_bucket = bucket_tile * kForwardBuckets;
  }
};

// Where a lane's logits are: documents `document` + 8 i of the tile. Of pair q of tiles of 8 buckets it has
// four neighbours from bucket(q) on, see bucket_row.
struct LanePlace {
  int document, first_bucket;

  __device__ LanePlace() {
    document = warp_id() / kWarpsOfBuckets * kWarpDocuments + lane_id() / 4;
    first_bucket = warp_id() % kWarpsOfBuckets * kWarpBuckets + 4 * (lane_id() % 4);
  }
  __device__ int bucket(int q) const { return first_bucket + 16 * q; }
};

// ------------------------------------------------------------------------------------------ the product

// In a stage a row has 64 bytes, four chunks of 16, and two rows share the 128 bytes that all banks give at
// once. ldmatrix reads the same chunk of eight rows. Chunk c of row r therefore lies at c ^ swizzle(r), so
// that these eight are in eight different places. Of documents they are neighbours. Of buckets they are
// 0, 1, 4, 5, 8, 9, 12, 13 or 2, 3, 6, ..., of 16, see bucket_row. A copy writes four chunks each of two
// neighbouring rows at once, which are in different places, too.
__device__ __forceinline__ int swizzle_documents(int row) { return row / 2 % 4; }
__device__ __forceinline__ int swizzle_buckets(int row) { return row / 4 % 4; }

// The bucket, of a pair's 16, that is column j of its tile t of 8. So a lane's columns 2 (lane % 4) and the
// next, of both tiles, are four neighbours, which it stores at once.
__device__ __forceinline__ int bucket_row(int t, int j) { return 4 * (j / 2) + 2 * t + j % 2; }

// kRows rows of hidden units k ... k + 31 into a stage; zeros where there is no row or no unit.
template <int kRows, class Swizzle>
__device__ __forceinline__ void copy_rows(unsigned char* to, const bf16* from, int64_t stride, int64_t rows,
                                          int64_t k, int64_t H, Swizzle swizzle) {
  const int chunk = static_cast<int>(threadIdx.x) % 4;
  const bool inside = k + 8 * chunk < H;
#pragma unroll
  for (int i = 0; i < kRows; i += kThreads / 4) {
    const int row = static_cast<int>(threadIdx.x) / 4 + i;
    unsigned char* at = to + row * kRowBytes + 16 * (chunk ^ swizzle(row));
    if (inside && row < rows)
      __pipeline_memcpy_async(at, from + row * stride + k + 8 * chunk, 16);
    else
      *reinterpret_cast<uint4*>(at) = uint4{};
  }
}

__device__ __forceinline__ void copy_stage(const BucketForwardParams& p, const Tile& tile, int64_t step,
                                           unsigned char* stage) {
  const bf16* hidden = p.hidden + tile.first_document * p.document_stride + tile.g * p.repetition_stride;
  const bf16* weight = p.weight + (tile.g * p.B + tile.first_bucket) * p.H;
  copy_rows<kForwardDocuments>(stage, hidden, p.document_stride, p.N - tile.first_document, step * kStep, p.H,
                               swizzle_documents);
  copy_rows<kForwardBuckets>(stage + kHiddenBytes, weight, p.H, p.B - tile.first_bucket, step * kStep, p.H,
                             swizzle_buckets);
}

__device__ __forceinline__ void multiply_stage(const unsigned char* stage, Logits& z) {
  const int first_document = warp_id() / kWarpsOfBuckets * kWarpDocuments;
  const int first_bucket = warp_id() % kWarpsOfBuckets * kWarpBuckets;
#pragma unroll
  for (int half = 0; half < kStep / 16; ++half) {
    uint32_t hidden[kDocumentTiles][4];
#pragma unroll
    for (int m = 0; m < kDocumentTiles; ++m) {
      const int row = first_document + 16 * m + lane_id() % 16, chunk = 2 * half + lane_id() / 16;
      load_matrices(hidden[m], stage + row * kRowBytes + 16 * (chunk ^ swizzle_documents(row)));
    }
#pragma unroll
    for (int q = 0; q < kPairs; ++q) {
      const int row = first_bucket + 16 * q + bucket_row(lane_id() / 16, lane_id() % 8);
      const int chunk = 2 * half + lane_id() / 8 % 2;
      uint32_t weight[4];
      load_matrices(weight, stage + kHiddenBytes + row * kRowBytes + 16 * (chunk ^ swizzle_buckets(row)));
      const uint32_t first[2] = {weight[0], weight[1]}, second[2] = {weight[2], weight[3]};
#pragma unroll
      for (int m = 0; m < kDocumentTiles; ++m) {
        multiply_add(z[m][2 * q], hidden[m], first);
        multiply_add(z[m][2 * q + 1], hidden[m], second);
      }
    }
  }
}

// The tile's logits without the bias. `meanwhile` runs while the first copies are under way; what it writes
// to shared memory is there afterwards, and the stages are free.
template <class F>
__device__ __forceinline__ void multiply_tile(const BucketForwardParams& p, const Tile& tile, int stages,
                                              unsigned char* shared, Logits& z, F meanwhile) {
  const int64_t steps = (p.H + kStep - 1) / kStep;
  for (int s = 0; s < stages - 1; ++s) {
    if (s < steps) copy_stage(p, tile, s, shared + s * kStageBytes);
    __pipeline_commit();
  }
  meanwhile();
  int now = 0, next = stages - 1;  // the stage to multiply, and the one to fill
#pragma unroll 1
  for (int64_t step = 0; step < steps; ++step) {
    // Commits are one a step, so all but the last stages - 2 are the copies of this step and before.
    if (stages == 3)
      __pipeline_wait_prior(1);
    else
      __pipeline_wait_prior(0);
    __syncthreads();  // all have copied this stage, and multiplied the one that is filled now
    if (step + stages - 1 < steps) copy_stage(p, tile, step + stages - 1, shared + next * kStageBytes);
    __pipeline_commit();
    multiply_stage(shared + now * kStageBytes, z);
    now = now + 1 < stages ? now + 1 : 0;
    next = next + 1 < stages ? next + 1 : 0;
  }
  __syncthreads();  // what was committed after the last copies is empty: nothing is under way
}

// ---------------------------------------------------------------------------------------- the epilogues

// Shared memory. The stages come first. After the product their place is scratch of the lanes, where a lane
// reads only what it wrote itself: an array in registers can't be indexed by a loop that is not unrolled, and
// the code of 128 logits a lane written out would be over 100 KB.
struct Scratch {
  float4 z[kWarps][kLaneDocuments][kWarp];
  double loss[kWarps][kLaneDocuments][kWarp];
};
struct HalfLeast {  // least scores, in the place of the scratch
  float of[kWarpsOfBuckets][kForwardDocuments / 2][kWarp];
};
struct ScoresShared {
  float bias[kForwardBuckets];
};
struct ExtremesShared {
  float peaks[kWarpsOfBuckets][kForwardDocuments][kTilePeaks];
  float bias[kForwardBuckets];
  unsigned faulty[kForwardDocuments / 32];  // documents with a score that is NaN or +inf
};
struct BceShared {
  double document_sums[kWarpsOfBuckets][kForwardDocuments];
  float bucket_sums[kForwardDocuments / kWarpDocuments][kForwardBuckets];
  float bias[kForwardBuckets];
  unsigned positive[kForwardDocuments][kWords];  // bit b % 32 of word b / 32: bucket b of the tile
  unsigned faulty[kForwardDocuments / 32];       // documents with a label or a bucket that is out of range
};
static_assert(sizeof(Scratch) <= 2 * kStageBytes && sizeof(HalfLeast) <= 2 * kStageBytes,
              "as many stages as there are at least");
static_assert(kForwardBuckets == kPeakRows * kWarp && kWarpsOfBuckets == 4, "a tile is that of the decode");

__device__ __forceinline__ void load_bias(const BucketForwardParams& p, const Tile& tile, float* bias) {
  static_assert(kThreads == kForwardBuckets, "a thread for each");
  const int64_t b = tile.first_bucket + threadIdx.x;
  bias[threadIdx.x] = p.bias && b < p.B ? p.bias[tile.g * p.B + b] : 0;
}

// each(q, z): for every pair q of tiles, a lane's logits of it, the i-th document's at z[i * kWarp].
template <class F>
__device__ __forceinline__ void for_each_pair(const Logits& logits, Scratch& scratch, F each) {
  float4* z = &scratch.z[warp_id()][0][lane_id()];
#pragma unroll
  for (int q = 0; q < kPairs; ++q) {
#pragma unroll
    for (int i = 0; i < kLaneDocuments; ++i) {
      const float* first = &logits[i / 2][2 * q][2 * (i % 2)];
      const float* second = &logits[i / 2][2 * q + 1][2 * (i % 2)];
      z[i * kWarp] = make_float4(first[0], first[1], second[0], second[1]);
    }
    each(q, z);
  }
}

__device__ __forceinline__ void add_bias(float (&x)[4], const float4& z, const float* bias) {
  x[0] = z.x + bias[0], x[1] = z.y + bias[1], x[2] = z.z + bias[2], x[3] = z.w + bias[3];
}

// kKeep: the scores replace their logits at z, NaN what is past the last bucket. Returned is a bit for each
// of the lane's documents, in order: whether one of these scores is NaN or +inf.
template <bool kKeep>
__device__ __forceinline__ unsigned store_scores(const BucketScoresParams& p, const Tile& tile, int q,
                                                 float4* z, const float* bias) {
  const LanePlace lane;
  const int64_t b = tile.first_bucket + lane.bucket(q);
  const int64_t left = p.forward.B - b;
  unsigned faulty = 0;
  if (!kKeep && left <= 0) return faulty;
#pragma unroll 2
  for (int i = 0; i < kLaneDocuments; ++i) {
    const int64_t n = tile.first_document + lane.document + 8 * i;
    if (!kKeep && n >= p.forward.N) return faulty;
    float x[4];
    add_bias(x, z[i * kWarp], bias + lane.bucket(q));
#pragma unroll
    for (int j = 0; j < 4; ++j) x[j] = transformed<Gpu>(p.transform, x[j]);
    if constexpr (kKeep) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (j < left && !(x[j] < INFINITY)) faulty |= 1u << i;
        if (j >= left) x[j] = __int_as_float(0x7fc00000);
      }
      z[i * kWarp] = make_float4(x[0], x[1], x[2], x[3]);
      if (n >= p.forward.N || left <= 0) continue;
    }
    float* to = p.scores + (n * p.forward.G + tile.g) * p.forward.B + b;
    if (p.forward.B % 4 == 0) {
      store_whole(to, make_float4(x[0], x[1], x[2], x[3]));
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (j < left) to[j] = x[j];
    }
  }
  return faulty;
}

__global__ void __launch_bounds__(kThreads, 1)
    bucket_forward_kernel(const BucketScoresParams p, const int stages) {
  if constexpr (kHasMma) {
    unsigned char* shared = dynamic_shared<unsigned char>();
    ScoresShared& s = *reinterpret_cast<ScoresShared*>(shared + stages * kStageBytes);
    const Tile tile(p.forward);
    Logits z = {};
    multiply_tile(p.forward, tile, stages, shared, z, [&] { load_bias(p.forward, tile, s.bias); });
    for_each_pair(z, *reinterpret_cast<Scratch*>(shared),
                  [&](int q, float4* pair) { store_scores<false>(p, tile, q, pair, s.bias); });
  }
}

// ---------------------------------------------------------------------------------------- for the decode

// Of a lane's documents and buckets b: the least scores by b % 32 = 16 h + 4 (lane % 4) + j, and the greatest
// with this h. Its pairs q have h = q % 2. NaN is skipped.
struct LaneExtremes {
  float least[kLaneDocuments][2][4], peak[kLaneDocuments][2];

  __device__ LaneExtremes() {
#pragma unroll
    for (int i = 0; i < kLaneDocuments; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        peak[i][h] = -INFINITY;
#pragma unroll
        for (int j = 0; j < 4; ++j) least[i][h][j] = INFINITY;
      }
  }
  __device__ __forceinline__ void take(int q, const float4* z) {
#pragma unroll
    for (int i = 0; i < kLaneDocuments; ++i) {
      const float4 x = z[i * kWarp];
      float (&l)[4] = least[i][q % 2];
      l[0] = fminf(l[0], x.x), l[1] = fminf(l[1], x.y), l[2] = fminf(l[2], x.z), l[3] = fminf(l[3], x.w);
      peak[i][q % 2] = fmaxf(peak[i][q % 2], fmaxf(fmaxf(x.x, x.y), fmaxf(x.z, x.w)));
    }
  }
};

// The tile's part for the decode: first the warps' peaks, which are few. Then, half of the lanes' documents
// at a time, the warps' least scores, which take the place of the stages. Of a half, row r is document r / 32
// * 64 + 32 half + r % 32 of the tile.
__device__ __forceinline__ void store_tile(const BucketScoresParams& p, const Tile& tile,
                                           const LaneExtremes& e, unsigned faulty, HalfLeast& half_least,
                                           ExtremesShared& s) {
  const BucketForwardParams& f = p.forward;
  const LanePlace lane;
  const int t = static_cast<int>(threadIdx.x), warp = warp_id() % kWarpsOfBuckets;
  const auto place = [&](int row) {
    return ((tile.first_document + row) * f.G + tile.g) * f.bucket_tiles() + tile.bucket_tile;
  };
#pragma unroll
  for (int i = 0; i < kLaneDocuments; ++i) {
    const int row = lane.document + 8 * i;
    if (faulty >> i & 1) atomicOr(&s.faulty[row / 32], 1u << (row % 32));
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float peak = fmaxf(e.peak[i][h], __shfl_xor_sync(kAllLanes, e.peak[i][h], 1));
      if (lane_id() % 2 == 0) s.peaks[warp][row][2 * h + lane_id() % 4 / 2] = peak;
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    __syncthreads();  // all have read what lies there
#pragma unroll
    for (int i = 0; i < kLaneDocuments / 2; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float (&l)[4] = e.least[half * (kLaneDocuments / 2) + i][h];
        const int row = warp_id() / kWarpsOfBuckets * 32 + lane_id() / 4 + 8 * i;
        *reinterpret_cast<float4*>(&half_least.of[warp][row][16 * h + 4 * (lane_id() % 4)]) =
            make_float4(l[0], l[1], l[2], l[3]);
      }
    __syncthreads();
#pragma unroll 2
    for (int r = warp_id(); r < kForwardDocuments / 2; r += kWarps) {
      const int row = r / 32 * kWarpDocuments + 32 * half + r % 32;
      float least = INFINITY;
      for (int w = 0; w < kWarpsOfBuckets; ++w) least = fminf(least, half_least.of[w][r][lane_id()]);
      if (tile.first_document + row < f.N) p.tiles.least[place(row) * kWarp + lane_id()] = least;
    }
  }
  if (t >= kForwardDocuments || tile.first_document + t >= f.N) return;
  float peaks[kTilePeaks];
  for (int g = 0; g < kTilePeaks; ++g)
    peaks[g] = fmaxf(fmaxf(s.peaks[0][t][g], s.peaks[1][t][g]), fmaxf(s.peaks[2][t][g], s.peaks[3][t][g]));
  *reinterpret_cast<float4*>(p.tiles.peaks + place(t) * kTilePeaks) =
      make_float4(peaks[0], peaks[1], peaks[2], peaks[3]);
  p.tiles.faulty[place(t)] = static_cast<int32_t>(s.faulty[t / 32] >> (t % 32) & 1);
}

__global__ void __launch_bounds__(kThreads, 1)
    bucket_forward_extremes_kernel(const BucketScoresParams p, const int stages) {
  if constexpr (kHasMma) {
    unsigned char* shared = dynamic_shared<unsigned char>();
    ExtremesShared& s = *reinterpret_cast<ExtremesShared*>(shared + stages * kStageBytes);
    const Tile tile(p.forward);
    Logits z = {};
    multiply_tile(p.forward, tile, stages, shared, z, [&] {
      load_bias(p.forward, tile, s.bias);
      if (threadIdx.x < kForwardDocuments / 32) s.faulty[threadIdx.x] = 0;
    });
    LaneExtremes e;
    unsigned faulty = 0;
    for_each_pair(z, *reinterpret_cast<Scratch*>(shared), [&](int q, float4* pair) {
      faulty |= store_scores<true>(p, tile, q, pair, s.bias);
      e.take(q, pair);
    });
    store_tile(p, tile, e, faulty, *reinterpret_cast<HalfLeast*>(shared), s);
  }
}

// ----------------------------------------------------------------------------------------- the training

// The labels of the tile's documents as bits, a warp a document.
__device__ __forceinline__ void find_positives(const BucketForwardBceParams& p, const Tile& tile,
                                               BceShared& s) {
  for (int i = static_cast<int>(threadIdx.x); i < kForwardDocuments * kWords; i += kThreads)
    s.positive[i / kWords][i % kWords] = 0;
  if (threadIdx.x < kForwardDocuments / 32) s.faulty[threadIdx.x] = 0;
  __syncthreads();
  const int32_t* buckets = p.buckets + tile.g * p.L;
#pragma unroll 1
  for (int row = warp_id(); row < kForwardDocuments; row += kWarps) {
    const int64_t n = tile.first_document + row;
    if (n >= p.forward.N) break;
    const int64_t end = p.labels.end(n);
    for (int64_t e = p.labels.begin(n) + lane_id(); e < end; e += kWarp) {
      const int64_t label = p.label_indices[e];
      const int64_t bucket = label >= 0 && label < p.L ? buckets[label] : -1;
      if (bucket < 0 || bucket >= p.forward.B) {
        atomicOr(&s.faulty[row / 32], 1u << (row % 32));
        continue;
      }
      const int64_t b = bucket - tile.first_bucket;
      if (b >= 0 && b < kForwardBuckets) atomicOr(&s.positive[row][b / 32], 1u << (b % 32));
    }
  }
}

// Four neighbours of a document: x becomes their gradient, the sum of their losses is returned. Of what is
// past the last bucket both are 0.
__device__ __forceinline__ float differentiate(float (&x)[4], unsigned positive, int64_t left, float scale) {
  float term[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    // For a positive, softplus(-z) is softplus(z) - z, -sigmoid(-z) is sigmoid(z) - 1: no cancellation.
    const bool wanted = positive >> j & 1;
    float sigmoid;
    logistic<Gpu>(wanted ? -x[j] : x[j], term[j], sigmoid);
    x[j] = (wanted ? -scale : scale) * sigmoid;
    if (j >= left) term[j] = x[j] = 0;
  }
  return (term[0] + term[1]) + (term[2] + term[3]);
}

__device__ __forceinline__ uint32_t bf16_pair(float low, float high) {
  const __nv_bfloat16 a = __float2bfloat16_rn(low), b = __float2bfloat16_rn(high);
  return static_cast<uint32_t>(__bfloat16_as_ushort(b)) << 16 | __bfloat16_as_ushort(a);
}

__device__ __forceinline__ void store_gradient(uint16_t* to, const float (&x)[4], int64_t left, bool whole) {
  const uint2 packed = make_uint2(bf16_pair(x[0], x[1]), bf16_pair(x[2], x[3]));
  if (whole) {
    store_whole(to, packed);
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (j < left) to[j] = static_cast<uint16_t>((j < 2 ? packed.x : packed.y) >> 16 * (j % 2));
  }
}

// Loss and gradient of a lane's part of pair q. The sum of a bucket over the warp's documents: a lane's eight
// in order, then the lanes in pairs at distance 4, 8, 16.
__device__ __forceinline__ void train_pair(const BucketForwardBceParams& p, const Tile& tile, int q,
                                           const float4* z, double* loss, BceShared& s) {
  const LanePlace lane;
  const int c = lane.bucket(q);
  const int64_t b = tile.first_bucket + c, left = p.forward.B - b;
  float sum[4] = {};
#pragma unroll 2
  for (int i = 0; i < kLaneDocuments; ++i) {
    const int row = lane.document + 8 * i;
    const int64_t n = tile.first_document + row;
    float x[4];
    add_bias(x, z[i * kWarp], s.bias + c);
    const float term = differentiate(x, s.positive[row][c / 32] >> (c % 32), left, p.scale);
    loss[i * kWarp] = (q == 0 ? 0. : loss[i * kWarp]) + static_cast<double>(term);
    if (n >= p.forward.N || left <= 0) continue;
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[j] += x[j];
    store_gradient(p.gradient + (n * p.forward.G + tile.g) * p.forward.B + b, x, left, p.forward.B % 4 == 0);
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int distance = 4; distance < kWarp; distance *= 2)
      sum[j] += __shfl_xor_sync(kAllLanes, sum[j], distance);
    if (lane_id() < 4) s.bucket_sums[warp_id() / kWarpsOfBuckets][c + j] = sum[j];
  }
}

// The tile's sums: of a document the lanes of a quad in pairs, then the warps in order; of a bucket the
// warps.
__device__ __forceinline__ void store_sums(const BucketForwardBceParams& p, const Tile& tile,
                                           const double* loss, BceShared& s) {
  const BucketForwardParams& f = p.forward;
  const LanePlace lane;
#pragma unroll 1
  for (int i = 0; i < kLaneDocuments; ++i) {
    double total = loss[i * kWarp];
    total += __shfl_xor_sync(kAllLanes, total, 1);
    total += __shfl_xor_sync(kAllLanes, total, 2);
    if (lane_id() % 4 == 0) s.document_sums[warp_id() % kWarpsOfBuckets][lane.document + 8 * i] = total;
  }
  __syncthreads();
  const int t = static_cast<int>(threadIdx.x);
  const int64_t n = tile.first_document + t, b = tile.first_bucket + t;
  if (t < kForwardDocuments && n < f.N) {
    double total = 0;
    for (int w = 0; w < kWarpsOfBuckets; ++w) total += s.document_sums[w][t];
    if (s.faulty[t / 32] >> (t % 32) & 1) total = __longlong_as_double(0x7FF8000000000000);  // NaN
    p.document_parts[(tile.g * f.bucket_tiles() + tile.bucket_tile) * f.N + n] = total;
  }
  if (b < f.B)
    p.bucket_parts[(tile.document_tile * f.G + tile.g) * f.B + b] = s.bucket_sums[0][t] + s.bucket_sums[1][t];
}

__global__ void __launch_bounds__(kThreads, 1)
    bucket_forward_bce_kernel(const BucketForwardBceParams p, const int stages) {
  if constexpr (kHasMma) {
    unsigned char* shared = dynamic_shared<unsigned char>();
    BceShared& s = *reinterpret_cast<BceShared*>(shared + stages * kStageBytes);
    Scratch& scratch = *reinterpret_cast<Scratch*>(shared);
    const Tile tile(p.forward);
    Logits z = {};
    multiply_tile(p.forward, tile, stages, shared, z, [&] {
      load_bias(p.forward, tile, s.bias);
      find_positives(p, tile, s);
    });
    double* loss = &scratch.loss[warp_id()][0][lane_id()];
    for_each_pair(z, scratch, [&](int q, const float4* pair) { train_pair(p, tile, q, pair, loss, s); });
    store_sums(p, tile, loss, s);
  }
}

// A thread a document, then a thread a bucket: the sums of the tiles, in order.
__global__ void __launch_bounds__(kThreads) bucket_forward_sums_kernel(const BucketForwardBceParams p) {
  const BucketForwardParams& f = p.forward;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, b = i - f.N;
  double total = 0;
  if (i < f.N) {
    for (int64_t tile = 0; tile < f.G * f.bucket_tiles(); ++tile) total += p.document_parts[tile * f.N + i];
    p.loss[i] = total;
  } else if (b < f.G * f.B) {
    for (int64_t tile = 0; tile < f.document_tiles(); ++tile)
      total += static_cast<double>(p.bucket_parts[tile * f.G * f.B + b]);
    p.grad_bias[b] = static_cast<float>(total);
  }
}

// Three stages are 72 KB, which every device from sm_80 on has. Two are for one with less.
template <class Shared>
size_t shared_bytes(int stages) {
  return stages * static_cast<size_t>(kStageBytes) + sizeof(Shared);
}
template <class Shared>
int num_stages() {
  const int most = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  return shared_bytes<Shared>(3) <= static_cast<size_t>(most) ? 3 : 2;
}

}  // namespace

bool has_bf16_mma() { return device_attribute(cudaDevAttrComputeCapabilityMajor) >= 8; }

cudaError_t launch_bucket_forward(const BucketScoresParams& p, cudaStream_t stream) {
  const int64_t tiles = p.forward.document_tiles() * p.forward.bucket_tiles() * p.forward.G;
  if (tiles == 0) return cudaSuccess;
  if (p.tiles.least) {
    const int stages = num_stages<ExtremesShared>();
    return MACH_LAUNCH(bucket_forward_extremes_kernel, grid_extent(tiles), kThreads,
                       shared_bytes<ExtremesShared>(stages), stream, p, stages);
  }
  const int stages = num_stages<ScoresShared>();
  return MACH_LAUNCH(bucket_forward_kernel, grid_extent(tiles), kThreads, shared_bytes<ScoresShared>(stages),
                     stream, p, stages);
}

cudaError_t launch_bucket_forward_bce(const BucketForwardBceParams& p, cudaStream_t stream) {
  const BucketForwardParams& f = p.forward;
  const int64_t tiles = f.document_tiles() * f.bucket_tiles() * f.G;
  const int64_t blocks = (f.N + f.G * f.B + kThreads - 1) / kThreads;
  if (tiles > 0) {
    const int stages = num_stages<BceShared>();
    const cudaError_t error = MACH_LAUNCH(bucket_forward_bce_kernel, grid_extent(tiles), kThreads,
                                          shared_bytes<BceShared>(stages), stream, p, stages);
    if (error != cudaSuccess) return error;
  }
  if (blocks == 0) return cudaSuccess;
  return MACH_LAUNCH(bucket_forward_sums_kernel, grid_extent(blocks), kThreads, 0, stream, p);
}

}  // namespace mach
