// Floor: 8 bytes a logit of float32, read and written once, or 6 where the gradient is bfloat16. The partial
// sums of columns add half a byte. The arithmetic takes longer: about 100 instructions a logit on sm_90.
#include "bucket_bce.cuh"
#include "columns.cuh"
#include "device.cuh"

namespace mach {
namespace {

struct Gpu {};  // for numeric.h, an instruction set

constexpr int kThreads = kBceColumns / 4, kWarps = kThreads / kWarp, kRows = kBceRows;
constexpr int kWords = kBceColumns / 32;

struct Shared {
  double partial[kRows][kWarps];
  unsigned positive[kRows][kWords];  // bit b % 32 of word b / 32: bucket b of the tile
  unsigned invalid[kRows];           // a label or its bucket is out of range
};

// Four neighbours of a row, those that it has.
template <class T>
__device__ inline void load_four(const T* z, int count, bool whole, T (&x)[4]) {
  if (whole) {
    const float4 v = *reinterpret_cast<const float4*>(z);
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = i < count ? z[i] : T(0);
}

template <class T>
__device__ inline void store_four(T* z, int count, bool whole, const T (&x)[4]) {
  if (whole) {
    store_whole(z, make_float4(x[0], x[1], x[2], x[3]));
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (i < count) z[i] = x[i];
}

template <class T>
__device__ inline void store_four(bf16* out, int count, const T (&x)[4]) {
  bf16 rounded[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) rounded[i] = round_to_bf16(static_cast<float>(x[i]));
  if (count == 4 && reinterpret_cast<uintptr_t>(out) % 8 == 0) {
    const auto pair = [&](int i) {
      return rounded[i].bits | static_cast<uint32_t>(rounded[i + 1].bits) << 16;
    };
    store_whole(out, make_uint2(pair(0), pair(2)));
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (i < count) out[i] = rounded[i];
}

// The positives of the tile's rows, a warp a row.
template <class T>
__device__ inline void mark_positives(const BucketBceParams<T>& p, Shared& shared, int64_t g, int64_t row,
                                      int rows, int64_t first) {
  const int32_t* buckets = p.buckets + g * p.L;
  for (int i = warp_id(); i < rows; i += kWarps) {
    const int64_t end = p.labels.end(row + i);
    bool invalid = false;
    for (int64_t e = p.labels.begin(row + i) + lane_id(); e < end; e += kWarp) {
      const int64_t label = p.label_indices[e];
      const int64_t bucket = label >= 0 && label < p.L ? buckets[label] : -1;
      if (bucket < 0 || bucket >= p.B) {
        invalid = true;
        continue;
      }
      const int64_t b = bucket - first;
      if (b >= 0 && b < kBceColumns) atomicOr(&shared.positive[i][b / 32], 1u << (b % 32));
    }
    if (__ballot_sync(kAllLanes, invalid) && lane_id() == 0) shared.invalid[i] = 1;
  }
}

// A block takes kRows documents of a repetition and kBceColumns buckets, a thread four neighbouring buckets
// of each row. So a thread holds its four column sums.
template <class T>
__global__ void __launch_bounds__(kThreads) bucket_bce_kernel(const BucketBceParams<T> p) {
  Shared& shared = *dynamic_shared<Shared>();
  const int64_t tiles = p.tiles(), part = blockIdx.x % (p.G * tiles), block = blockIdx.x / (p.G * tiles);
  const int64_t g = part / tiles, first = part % tiles * kBceColumns, row = block * kRows;
  const int rows = static_cast<int>(p.labels.N - row < kRows ? p.labels.N - row : kRows);
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < kRows * kWords; i += kThreads) shared.positive[i / kWords][i % kWords] = 0;
  if (thread < kRows) shared.invalid[thread] = 0;
  __syncthreads();
  mark_positives(p, shared, g, row, rows, first);
  __syncthreads();

  const int64_t b = first + 4 * thread;
  const int count = static_cast<int>(p.B - b < 0 ? 0 : p.B - b < 4 ? p.B - b : 4);
  T bias[4] = {}, column[4] = {};
  if (p.bias && count > 0) load_four(p.bias + g * p.B + b, count, false, bias);
  for (int r = 0; r < rows; ++r) {
    double sum = 0;
    if (count > 0) {
      T* z = p.logits + (row + r) * p.document_stride + g * p.repetition_stride + b;
      const bool whole = sizeof(T) == 4 && count == 4 && is_aligned(z);
      T x[4], term[4] = {};
      load_four(z, count, whole, x);
      const unsigned bits = shared.positive[r][thread / 8] >> (thread % 8 * 4);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i >= count) continue;
        if (p.bias) x[i] += bias[i];
        // For a positive, softplus(-z) is softplus(z) - z, -sigmoid(-z) is sigmoid(z) - 1: no cancellation.
        const bool wanted = bits >> i & 1;
        T sigmoid;
        logistic<Gpu>(wanted ? -x[i] : x[i], term[i], sigmoid);
        x[i] = (wanted ? -p.scale : p.scale) * sigmoid;
        column[i] += x[i];
      }
      sum = static_cast<double>((term[0] + term[1]) + (term[2] + term[3]));
      if (p.out)
        store_four(p.out + (row + r) * p.out_document_stride + g * p.out_repetition_stride + b, count, x);
      else if (p.gradient)
        store_four(z, count, whole, x);
    }
    sum = warp_sum(sum);
    if (lane_id() == 0) shared.partial[r][warp_id()] = sum;
  }
  if (p.grad_bias && count > 0)
    store_four(p.partial_columns + (block * p.G + g) * p.B + b, count, false, column);
  __syncthreads();
  if (thread >= rows) return;
  double total = 0;
  for (int w = 0; w < kWarps; ++w) total += shared.partial[thread][w];
  if (shared.invalid[thread]) total = __longlong_as_double(0x7FF8000000000000);  // NaN
  p.partial_loss[(row + thread) * p.G * tiles + part] = total;
}

// Adds up what the tiles left. Blocks of 32 columns come first, one warp for each of the kBceSums sums. Then
// come blocks of kThreads documents.
template <class T>
__global__ void __launch_bounds__(kThreads) bucket_bce_sums_kernel(const BucketBceParams<T> p) {
  static_assert(kBceSums == kWarps);
  const int64_t N = p.labels.N, width = p.grad_bias ? p.G * p.B : 0;
  const int64_t column_blocks = (width + kWarp - 1) / kWarp;
  if (blockIdx.x >= column_blocks) {
    const int64_t n = (blockIdx.x - column_blocks) * kThreads + threadIdx.x, parts = p.G * p.tiles();
    if (n >= N) return;
    double total = 0;
#pragma unroll 8
    for (int64_t i = 0; i < parts; ++i) total += p.partial_loss[n * parts + i];
    p.loss[n] = total;
    return;
  }
  T* partial = dynamic_shared<T>();  // [kBceSums, kWarp]
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kWarp + lane_id(), blocks = (N + kRows - 1) / kRows;
  T sum = 0;
  if (at < width) {
#pragma unroll 8
    for (int64_t i = warp_id(); i < blocks; i += kBceSums) sum += p.partial_columns[i * width + at];
  }
  partial[threadIdx.x] = sum;
  __syncthreads();
  if (warp_id() != 0 || at >= width) return;
  T total = 0;
  for (int64_t i = 0; i < (blocks < kBceSums ? blocks : kBceSums); ++i)
    total += partial[i * kWarp + lane_id()];
  p.grad_bias[at] = total;
}

}  // namespace

template <class T>
cudaError_t launch_bucket_bce(const BucketBceParams<T>& p, cudaStream_t stream) {
  const int64_t N = p.labels.N, width = p.grad_bias ? p.G * p.B : 0;
  const int64_t blocks = (N + kRows - 1) / kRows * p.G * p.tiles();
  const int64_t more = (width + kWarp - 1) / kWarp + (N + kThreads - 1) / kThreads;
  if (blocks > 0) {
    const cudaError_t error =
        MACH_LAUNCH(bucket_bce_kernel<T>, grid_extent(blocks), kThreads, sizeof(Shared), stream, p);
    if (error != cudaSuccess) return error;
  }
  // The loss of a single tile of a single repetition is its partial sum.
  if (more == 0 || (width == 0 && p.loss == p.partial_loss)) return cudaSuccess;
  return MACH_LAUNCH(bucket_bce_sums_kernel<T>, grid_extent(more), kThreads, kThreads * sizeof(T), stream, p);
}

template cudaError_t launch_bucket_bce(const BucketBceParams<float>&, cudaStream_t);
template cudaError_t launch_bucket_bce(const BucketBceParams<double>&, cudaStream_t);

}  // namespace mach
