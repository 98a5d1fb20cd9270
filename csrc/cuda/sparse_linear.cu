// Floors, in bytes of device memory for a batch with E non-zeros, U features that occur, weights of w bytes:
//   sparse_linear  w R M U where a row that several documents want stays in L2, w R M E where it does not,
//                  and 4 N R M written. 256 x 75, M = 8192, bf16: 205 MB of unique rows (12.5K of them), 315
//                  MB as gathered: 49 and 73 us at 4.3 TB/s.
//   grad_values    the same reads; the gradient's rows come from L1 or L2.
//   feature_rows   4 R M U written, or 24 R M U for a step of Adam, 16 for Adagrad; 4 N R M read once. The
//                  4 R M E of gathered gradient rows come out of L2: 8 MB of them at N = 256, M = 8192.
// All three are gathers of rows by warps, with 512 bytes in a load. Only the number of pending loads hides
// the latency of memory. A lane therefore issues kRows loads before it uses the first. It also loads the next
// 32 indices before it uses the present ones.
#include <type_traits>

#include "columns.cuh"
#include "device.cuh"
#include "sparse_linear.cuh"

namespace mach {
namespace {

// The entries of a sum, 32 at a time: one a lane, handed round by shuffle.
template <class T>
struct Entries {
  int64_t offset;  // of the row, in elements; lanes beyond `count`: 0
  T value;
  int count;
};

// sum += value * row over entries [0, count) in order. kRows rows are loaded before the first is used.
template <int kRows, class T, class W, int kWidth, bool kAligned>
__device__ inline void add_rows(const Entries<T>& entries, const W* rows, const Lane<kWidth, kAligned>& lane,
                                T (&sum)[kWidth]) {
  const auto add = [&](int first, auto whole) {
    constexpr bool kWhole = decltype(whole)::value;
    Columns<T, W, kWidth, kAligned> row[kRows];
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const int64_t offset = __shfl_sync(kAllLanes, entries.offset, first + k);
      if (kWhole || first + k < entries.count) row[k].load(rows + offset, lane);
    }
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const T value = __shfl_sync(kAllLanes, entries.value, first + k);
      if (kWhole || first + k < entries.count) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) sum[i] = sum[i] + value * row[k][i];
      }
    }
  };
  int first = 0;
#pragma unroll 1
  for (; first + kRows <= entries.count; first += kRows) add(first, std::true_type());
  if (first < entries.count) add(first, std::false_type());
}

__device__ inline int smaller(int64_t a, int b) { return a < b ? static_cast<int>(a) : b; }

// ---------------------------------------------------------------------------------------- sparse_linear

// 16 bytes of a row a lane; rows under way a lane, in 32 registers (where elements are loaded one by one: as
// many elements).
template <class W>
constexpr int kForwardWidth = 16 / static_cast<int>(sizeof(W));
template <class W, bool kAligned>
constexpr int kForwardRows = kAligned || sizeof(W) == 4 ? 8 : 4;

constexpr int kForwardWarps = 4;

// One warp a (document, repetition, tile of columns). A block holds up to kForwardWarps neighbouring tiles of
// a document, `together` of them, and as many documents as that leaves room for. Documents run fastest over
// the grid, so that what is read at one time is a few tiles wide, and a row wanted again is still in L2.
template <class T, class W, bool kAligned>
__global__ void __launch_bounds__(32 * kForwardWarps, 4)
    sparse_linear_kernel(const SparseLinearParams<T, W> p, int64_t tiles, int together, int64_t first_y) {
  constexpr int kWidth = kForwardWidth<W>, kTile = 32 * kWidth;
  const int warp = warp_id();
  const int64_t tile_groups = (tiles + together - 1) / together, y = first_y + blockIdx.y;
  const int64_t r = y / tile_groups, tile = (y - r * tile_groups) * together + warp % together;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * (kForwardWarps / together) + warp / together;
  if (tile >= tiles || n >= p.rows.N) return;
  const Lane<kWidth, kAligned> lane(tile * kTile, p.M);
  T sum[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i)
    sum[i] = p.bias && lane.has(i) ? p.bias[r * p.M + tile * kTile + lane.column(i)] : T(0);
  const int64_t begin = p.rows.begin(n), end = p.rows.end(n);
  int64_t index = 0;
  T value = 0;
  const auto fetch = [&](int64_t e) {
    index = e < end ? p.indices[e] : 0;
    value = e < end ? p.values[e] : T(0);
  };
  fetch(begin + lane_id());
#pragma unroll 1
  for (int64_t base = begin; base < end; base += 32) {
    if (__any_sync(kAllLanes, index < 0 || index >= p.D)) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) sum[i] = static_cast<T>(__int_as_float(0x7FC00000));  // NaN
      break;
    }
    const Entries<T> entries{index * p.M, value, smaller(end - base, 32)};
    fetch(base + 32 + lane_id());
    add_rows<kForwardRows<W, kAligned>>(entries, p.weight + r * p.D * p.M + tile * kTile, lane, sum);
  }
  if (p.relu) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum[i] = sum[i] < T(0) ? T(0) : sum[i];  // NaN stays NaN
  }
  store_columns(p.out + (n * p.R + r) * p.M + tile * kTile, lane, sum);
}

// --------------------------------------------------------------------------- sparse_linear_grad_values

// Eight columns a lane for every type, so that a narrow weight and the same weight widened give the same
// sums.
constexpr int kSampledWidth = 8, kPositions = 8, kSampledWarps = 4;

template <class W, bool kAligned>
constexpr int kSampledRows = sizeof(W) == 8               ? 2
                             : kAligned && sizeof(W) == 2 ? 8
                                                          : 4;

// One block for kPositions neighbouring non-zeros: its warps share the tiles of all repetitions, each with
// the gradient's tile in registers for all non-zeros of one document. The sums of the lanes, then of the
// warps, are added in a fixed order.
template <class T, class W, bool kAligned>
__global__ void __launch_bounds__(32 * kSampledWarps)
    sparse_linear_grad_values_kernel(const SparseLinearGradValuesParams<T, W> p, int64_t tiles) {
  constexpr int kWidth = kSampledWidth, kTile = 32 * kWidth, kRows = kSampledRows<W, kAligned>;
  T* partial = dynamic_shared<T>();  // [warps, kPositions]
  const int warps = static_cast<int>(blockDim.x) / 32;
  // Lane k knows of position k: its document and its row of the weight, -1 where there is none.
  const int64_t position = static_cast<int64_t>(blockIdx.x) * kPositions + lane_id();
  int64_t document = -1, offset = -1;
  if (lane_id() < kPositions && position < p.rows.nnz) {
    const int64_t index = p.indices[position];
    document = p.rows.row_of(position);
    if (document >= 0 && index >= 0 && index < p.D) offset = index * p.M;
  }
  T sum[kPositions] = {};
  for (int begin = 0, end; begin < kPositions; begin = end) {
    const int64_t n = __shfl_sync(kAllLanes, document, begin);
    end = __ffs(static_cast<int>(__ballot_sync(kAllLanes, lane_id() > begin && document != n) |
                                 1u << kPositions)) -
          1;
    if (n < 0) continue;
    int64_t r = 0, tile = warp_id();
    for (;; tile += warps) {
      for (; tile >= tiles && r < p.R; ++r) tile -= tiles;
      if (r >= p.R) break;
      const Lane<kWidth, kAligned> lane(tile * kTile, p.M);
      const W* weight = p.weight + r * p.D * p.M + tile * kTile;
      Columns<T, T, kWidth, kAligned> grad;
      grad.load(p.grad + (n * p.R + r) * p.M + tile * kTile, lane);
#pragma unroll
      for (int first = 0; first < kPositions; first += kRows) {
        Columns<T, W, kWidth, kAligned> row[kRows];
        bool known[kRows];
#pragma unroll
        for (int k = 0; k < kRows; ++k) {
          const int64_t at = __shfl_sync(kAllLanes, offset, first + k);
          known[k] = at >= 0 && first + k >= begin && first + k < end;
          if (known[k]) row[k].load(weight + at, lane);
        }
#pragma unroll
        for (int k = 0; k < kRows; ++k)
          if (known[k]) {
#pragma unroll
            for (int i = 0; i < kWidth; ++i)
              if (lane.has(i)) sum[first + k] = sum[first + k] + grad[i] * row[k][i];
          }
      }
    }
  }
#pragma unroll
  for (int k = 0; k < kPositions; ++k) {
    const T total = warp_sum(sum[k]);
    if (lane_id() == 0) partial[warp_id() * kPositions + k] = total;
  }
  __syncthreads();
  if (warp_id() == 0 && lane_id() < kPositions && position < p.rows.nnz) {
    T total = 0;
    for (int w = 0; w < warps; ++w) total += partial[w * kPositions + lane_id()];
    p.grad_values[position] = total;
  }
}

// ----------------------------------------------------------------------------------------- feature_rows

constexpr int kFeatureWarps = 8, kFeatureWidth = 4, kFeatureTile = 32 * kFeatureWidth;

// Sums of the entries [begin, end) of p.groups, E in all: of a tile of the gradient's columns, from `grad`
// on, and of the values. Most features occur once or twice in a batch: four rows under way are enough.
template <class T, bool kAligned>
__device__ inline void sum_entries(const FeatureRowsParams<T>& p, int64_t begin, int64_t end, const T* grad,
                                   const Lane<kFeatureWidth, kAligned>& lane, T (&sum)[kFeatureWidth],
                                   T& values) {
  int64_t offset = 0;
  T value = 0;
  bool known = true;
  const auto fetch = [&](int64_t e) {
    offset = 0, value = 0, known = true;
    if (e >= end) return;
    const int64_t position = p.groups.positions[e], document = p.groups.documents[e];
    known = position >= 0 && position < p.nnz && document >= 0 && document < p.N;
    if (!known) return;
    value = p.values[position];
    offset = document * p.R * p.M;
  };
  fetch(begin + lane_id());
#pragma unroll 1
  for (int64_t base = begin; base < end; base += 32) {
    const Entries<T> entries{offset, value, smaller(end - base, 32)};
    unsigned left = __ballot_sync(kAllLanes, !known);
    fetch(base + 32 + lane_id());
    if (left == 0) {
      add_rows<sizeof(T) == 4 ? 4 : 2>(entries, grad, lane, sum);
    } else {  // of a faulty order, what there is of it
      for (left = ~left & (entries.count < 32 ? (1u << entries.count) - 1 : kAllLanes); left != 0;
           left &= left - 1) {
        const int k = __ffs(static_cast<int>(left)) - 1;
        add_rows<1>(Entries<T>{__shfl_sync(kAllLanes, entries.offset, k),
                               __shfl_sync(kAllLanes, entries.value, k), 1},
                    grad, lane, sum);
      }
    }
    if (p.sums)
      for (int k = 0; k < entries.count; ++k) values += __shfl_sync(kAllLanes, entries.value, k);
  }
}

// One warp a (feature, tile of columns), one block kFeatureWarps features. A few features occur in most
// documents: what would take one warp long, more than kShort entries, is afterwards shared by all warps of
// the block, a piece of the entries each, and their sums are added in order. Frequent features are often
// neighbours, so a block's features are taken from all over the range.
template <class T, bool kAligned>
__global__ void __launch_bounds__(32 * kFeatureWarps)
    feature_rows_kernel(const FeatureRowsParams<T> p, int64_t tiles, int64_t first_y) {
  // Shared: begin and end of each warp's feature, if it is long; each warp's partial sums.
  int64_t* range = dynamic_shared<int64_t>();
  T* partial = reinterpret_cast<T*>(range + 2 * kFeatureWarps);  // [warps, tile]
  T* partial_values = partial + kFeatureWarps * kFeatureTile;    // [warps]
  const int64_t U = p.groups.counts ? p.groups.counts[0] : p.groups.U;
  const int64_t E = p.groups.counts ? p.groups.counts[1] : p.groups.E;
  const int64_t blocks = (U + kFeatureWarps - 1) / kFeatureWarps;
  if (blockIdx.x >= blocks) return;
  const int64_t u = blockIdx.x + warp_id() * blocks;
  const int64_t r = (first_y + blockIdx.y) / tiles,
                column = (first_y + blockIdx.y - r * tiles) * kFeatureTile;
  const Lane<kFeatureWidth, kAligned> lane(column, p.M);
  int64_t begin = 0, end = 0, feature = -1;
  if (u < U) {
    feature = p.groups.features[u];
    begin = p.groups.offsets[u], end = p.groups.offsets[u + 1];
    begin = begin < 0 ? 0 : begin < E ? begin : E;
    end = end < begin ? begin : end < E ? end : E;
    if (feature < 0 || feature >= p.D) {  // its row is of zeros, or is none
      feature = p.to == GradientTo::rows ? 0 : -1;
      end = begin;
    }
  }
  const bool is_long = end - begin > kShort;
  if (lane_id() == 0) {
    range[2 * warp_id()] = begin;
    range[2 * warp_id() + 1] = is_long ? end : begin;
  }
  const int64_t at = ((p.to == GradientTo::rows ? r * U + u : r * p.D + feature)) * p.M + column;
  const bool has_second = p.step.optimizer == Optimizer::adam;
  // Turn -1: each warp its own feature. Turn w: all of them that of warp w, if it is long.
  for (int turn = -1; turn < kFeatureWarps; ++turn) {
    if (turn == 0) __syncthreads();
    if (turn < 0) {
      if (is_long || feature < 0) continue;
    } else {
      const int64_t first = range[2 * turn], last = range[2 * turn + 1];
      if (first == last) continue;
      const int64_t piece = (last - first + kFeatureWarps - 1) / kFeatureWarps;
      begin = first + warp_id() * piece;
      end = begin + piece < last ? begin + piece : last;
    }
    const bool mine = turn < 0 || turn == warp_id();
    T x[kFeatureWidth], first[kFeatureWidth], second[kFeatureWidth];
    if (mine && p.to == GradientTo::step) {  // asked for before the sum, needed after it
      load_columns(p.out + at, lane, x);
      load_columns(p.step.first + at, lane, first);
      if (has_second) load_columns(p.step.second + at, lane, second);
    }
    T sum[kFeatureWidth] = {}, values = 0;
    sum_entries(p, begin, end, p.grad + r * p.M + column, lane, sum, values);
    if (turn >= 0) {
#pragma unroll
      for (int i = 0; i < kFeatureWidth; ++i) {
        partial[(warp_id() * kFeatureWidth + i) * 32 + lane_id()] = sum[i];
        sum[i] = 0;
      }
      if (lane_id() == 0) partial_values[warp_id()] = values;
      values = 0;
      __syncthreads();
      if (mine)
        for (int w = 0; w < kFeatureWarps; ++w) {
#pragma unroll
          for (int i = 0; i < kFeatureWidth; ++i) sum[i] += partial[(w * kFeatureWidth + i) * 32 + lane_id()];
          values += partial_values[w];
        }
      __syncthreads();
    }
    if (!mine) continue;
    if (p.sums && column == 0 && r == 0 && lane_id() == 0) p.sums[feature] = values;
    if (p.to == GradientTo::columns) {
      const int64_t q = feature / p.B, b = feature - q * p.B;
#pragma unroll
      for (int i = 0; i < kFeatureWidth; ++i)
        if (lane.has(i)) p.out[(q * p.M + column + lane.column(i)) * p.B + b] = sum[i];
    } else if (p.to == GradientTo::step) {
#pragma unroll
      for (int i = 0; i < kFeatureWidth; ++i) step_element(p.step, sum[i], x[i], first[i], second[i]);
      store_columns(p.out + at, lane, x);
      store_columns(p.step.first + at, lane, first);
      if (has_second) store_columns(p.step.second + at, lane, second);
    } else {
      store_columns(p.out + at, lane, sum);
    }
  }
}

}  // namespace

// One launch for each kMostY rows of a grid, as a rule one in all.
template <class F>
cudaError_t launch_rows(int64_t grid_y, const F& launch) {
  constexpr int64_t kMostY = 65535;
  cudaError_t error = cudaSuccess;
  for (int64_t y = 0; y < grid_y && error == cudaSuccess; y += kMostY)
    error = launch(y, static_cast<unsigned>(grid_y - y < kMostY ? grid_y - y : kMostY));
  return error;
}

template <class T, class W>
cudaError_t launch_sparse_linear(const SparseLinearParams<T, W>& p, cudaStream_t stream) {
  if (p.rows.N * p.R * p.M == 0) return cudaSuccess;
  constexpr int kWidth = kForwardWidth<W>;
  const int64_t tiles = (p.M + 32 * kWidth - 1) / (32 * kWidth);
  const int together = tiles == 1 ? 1 : tiles == 2 ? 2 : kForwardWarps;
  const int64_t documents = kForwardWarps / together, blocks = (p.rows.N + documents - 1) / documents;
  const bool aligned = p.M % kWidth == 0 && is_aligned(p.weight) && is_aligned(p.out);
  return launch_rows(p.R * ((tiles + together - 1) / together), [&](int64_t y, unsigned count) {
    const dim3 grid(grid_extent(blocks), count), block(32 * kForwardWarps);
    if constexpr (sizeof(T) == 4)
      if (aligned)
        return MACH_LAUNCH((sparse_linear_kernel<T, W, true>), grid, block, 0, stream, p, tiles, together, y);
    return MACH_LAUNCH((sparse_linear_kernel<T, W, false>), grid, block, 0, stream, p, tiles, together, y);
  });
}

template <class T, class W>
cudaError_t launch_sparse_linear_grad_values(const SparseLinearGradValuesParams<T, W>& p,
                                             cudaStream_t stream) {
  if (p.rows.nnz == 0) return cudaSuccess;
  const int64_t tiles = (p.M + 32 * kSampledWidth - 1) / (32 * kSampledWidth);
  const int64_t wanted = p.R * tiles < 1 ? 1 : p.R * tiles;
  const int warps = wanted < kSampledWarps ? static_cast<int>(wanted) : kSampledWarps;
  const dim3 grid(grid_extent((p.rows.nnz + kPositions - 1) / kPositions)), block(32 * warps);
  const size_t shared = static_cast<size_t>(warps) * kPositions * sizeof(T);
  if constexpr (sizeof(T) == 4) {
    if (p.M % kSampledWidth == 0 && is_aligned(p.weight) && is_aligned(p.grad))
      return MACH_LAUNCH((sparse_linear_grad_values_kernel<T, W, true>), grid, block, shared, stream, p,
                         tiles);
  }
  return MACH_LAUNCH((sparse_linear_grad_values_kernel<T, W, false>), grid, block, shared, stream, p, tiles);
}

template <class T>
cudaError_t launch_feature_rows(const FeatureRowsParams<T>& p, cudaStream_t stream) {
  if (p.groups.U * p.R == 0 || (p.M == 0 && !p.sums)) return cudaSuccess;
  const int64_t tiles = p.M == 0 ? 1 : (p.M + kFeatureTile - 1) / kFeatureTile;
  const size_t shared = 2 * kFeatureWarps * sizeof(int64_t) + kFeatureWarps * (kFeatureTile + 1) * sizeof(T);
  const bool aligned = p.M % kFeatureWidth == 0 && is_aligned(p.grad) && is_aligned(p.out) &&
                       is_aligned(p.step.first) && is_aligned(p.step.second);
  return launch_rows(p.R * tiles, [&](int64_t y, unsigned count) {
    const dim3 grid(grid_extent((p.groups.U + kFeatureWarps - 1) / kFeatureWarps), count);
    const dim3 block(32 * kFeatureWarps);
    if constexpr (sizeof(T) == 4)
      if (aligned)
        return MACH_LAUNCH((feature_rows_kernel<T, true>), grid, block, shared, stream, p, tiles, y);
    return MACH_LAUNCH((feature_rows_kernel<T, false>), grid, block, shared, stream, p, tiles, y);
  });
}

#define MACH_WEIGHTED(T, W)                                                                        \
  template cudaError_t launch_sparse_linear(const SparseLinearParams<T, W>&, cudaStream_t);        \
  template cudaError_t launch_sparse_linear_grad_values(const SparseLinearGradValuesParams<T, W>&, \
                                                        cudaStream_t);
MACH_WEIGHTED(float, float)
MACH_WEIGHTED(float, bf16)
MACH_WEIGHTED(float, fp16)
MACH_WEIGHTED(double, double)

template cudaError_t launch_feature_rows(const FeatureRowsParams<float>&, cudaStream_t);
template cudaError_t launch_feature_rows(const FeatureRowsParams<double>&, cudaStream_t);

}  // namespace mach
