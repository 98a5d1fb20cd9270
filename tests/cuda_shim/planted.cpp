// Small kernels, right and with mistakes planted: what test_cuda_shim.py runs to see what the shim catches.
//   planted CASE SEEDS    one line for each seed 0 ... SEEDS - 1: "right", "wrong" (results) or the report
#include <cuda_pipeline_primitives.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../csrc/cuda/device.cuh"
#include "../../csrc/cuda/mma.cuh"

extern "C" void mach_shim_set_seed(uint64_t seed);

namespace mach {
namespace {

enum class Plant {
  none,
  barrier,
  warp,
  own_lane,
  lanes,
  half,
  other_barrier,
  ended,
  before,
  behind,
  far,
  loaded
};

// out[block] = sum of the block's part of x, x[i] = i + 1.
template <Plant plant>
__global__ void block_sum_kernel(const int* x, int* out, int n) {
  int* shared = dynamic_shared<int>();
  const int t = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int i = static_cast<int>(blockIdx.x) * threads + t;
  shared[t] = i < n ? x[i] : 0;
  if (plant == Plant::before && t == 5) shared[-1] = 7;
  if (plant == Plant::behind && t == 5) shared[threads] = 7;
  if (plant == Plant::far && t == 5) shared[threads + 1000] = 7;
  if (plant == Plant::loaded && t == 5) shared[t] += shared[threads + 1000];
  if (plant == Plant::ended && t >= 96) return;
  for (int half = threads / 2; half > 0; half /= 2) {
    if (plant == Plant::other_barrier && t == 3)
      __syncthreads();
    else if (plant == Plant::half ? t < 32 : plant != Plant::barrier || half != threads / 4)
      __syncthreads();
    if (t < half) shared[t] += shared[t + half];
  }
  if (t == 0) out[blockIdx.x] = shared[0];
}

template <Plant plant>
bool block_sum(unsigned threads, size_t shared_ints) {
  const int n = 1000, blocks = static_cast<int>((n + threads - 1) / threads);
  std::vector<int> x(n), out(blocks, -1);
  for (int i = 0; i < n; ++i) x[i] = i + 1;
  const cudaError_t error = MACH_LAUNCH(block_sum_kernel<plant>, blocks, threads, shared_ints * sizeof(int),
                                        nullptr, x.data(), out.data(), n);
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
  int sum = 0;
  for (int s : out) sum += s;
  return sum == n * (n + 1) / 2;
}

// Each warp turns its part of x around through shared memory.
template <Plant plant>
__global__ void turn_kernel(int* x) {
  int* shared = dynamic_shared<int>() + warp_id() * kWarp;
  shared[lane_id()] = x[threadIdx.x];
  if (plant == Plant::own_lane)
    __syncwarp(0xffff);
  else if (plant == Plant::lanes) {
    if (lane_id() < 16) __syncwarp();
  } else if (plant != Plant::warp)
    __syncwarp();
  x[threadIdx.x] = shared[kWarp - 1 - lane_id()];
}

template <Plant plant>
bool turn(unsigned threads = 64) {
  std::vector<int> x(threads);
  for (unsigned i = 0; i < threads; ++i) x[i] = static_cast<int>(i);
  MACH_LAUNCH(turn_kernel<plant>, 1, threads, threads * sizeof(int), nullptr, x.data());
  for (unsigned i = 0; i < threads; ++i)
    if (x[i] != static_cast<int>(i / 32 * 32 + 31 - i % 32)) return false;
  return true;
}

// Every collective against what its definition says, in one warp; lanes of both halves on their own as well.
__global__ void collectives_kernel(int* failures) {
  const int lane = lane_id();
  const auto expect = [&](int number, bool right) {
    if (!right) atomicOr(failures, 1 << number);
  };
  expect(0, warp_sum(lane) == 496 && warp_max(lane ^ 5) == 31);
  expect(1, __shfl_sync(kAllLanes, 100 + lane, 7) == 107 &&
                __shfl_sync(kAllLanes, lane, 3, 8) == lane / 8 * 8 + 3);
  expect(2, __shfl_up_sync(kAllLanes, lane, 3u) == (lane < 3 ? lane : lane - 3));
  expect(3, __shfl_down_sync(kAllLanes, lane, 2u, 16) == (lane % 16 < 14 ? lane + 2 : lane));
  expect(4, __shfl_xor_sync(kAllLanes, 1.5 * lane, 9) == 1.5 * (lane ^ 9));
  expect(5, __ballot_sync(kAllLanes, lane % 3 == 0) == 0x49249249u);
  expect(6,
         __any_sync(kAllLanes, lane == 9) && !__all_sync(kAllLanes, lane != 9) && __all_sync(kAllLanes, 1));
  expect(7, __match_any_sync(kAllLanes, lane % 4) == 0x11111111u << lane % 4);
  if (lane < 16) {
    expect(8, __ballot_sync(0xffffu, lane & 1) == 0xaaaau && __shfl_sync(0xffffu, lane, 15) == 15);
  } else {
    expect(9, __ballot_sync(0xffff0000u, lane & 1) == 0xaaaa0000u);
    expect(10, __float_as_uint(__shfl_sync(0xffff0000u, 0.f, 0)) == mach_shim::kPoison);
  }
  expect(11,
         __syncthreads_count(lane < 5) == 5 && __syncthreads_or(lane == 3) && !__syncthreads_and(lane == 3));
}

bool collectives() {
  int failures = 0;
  MACH_LAUNCH(collectives_kernel, 3, 32, 0, nullptr, &failures);
  if (failures) std::printf("failures 0x%x ", failures);
  return failures == 0;
}

// Values below 50 into a list of room for all of them, the place taken from a counter.
template <bool atomically>
__global__ void collect_kernel(const int* x, int n, int* count, int* list) {
  for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) {
    if (x[i] >= 50) continue;
    const int at = atomically ? atomicAdd(count, 1) : atomicAdd(count, 0);
    list[at] = x[i];
    if (!atomically) atomicExch(count, at + 1);
  }
}

template <bool atomically>
bool collect() {
  std::vector<int> x(300), list(300);
  for (int i = 0; i < 300; ++i) x[i] = i * 7 % 300;
  int count = 0, sum = 0;
  MACH_LAUNCH(collect_kernel<atomically>, 1, 64, 0, nullptr, x.data(), 300, &count, list.data());
  for (int i = 0; i < count; ++i) sum += list[i];
  return count == 50 && sum == 49 * 50 / 2;
}

enum class CopyPlant {
  none,
  no_wait,
  late_wait,
  never_waited,
  misaligned,
  misaligned_source,
  wrong_size,
  outside,
  overwritten,
  reused
};

// Sums of x by a ring of stages in shared memory: that of step s + stages - 1 is on its way while s is read.
template <CopyPlant plant>
__global__ void ring_kernel(const uint4* x, int steps, int stages, unsigned* out) {
  auto* ring = dynamic_shared<uint4>();
  const int t = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const auto fetch = [&](int step) {
    char* to = reinterpret_cast<char*>(ring + step % stages * threads + t);
    const char* from = reinterpret_cast<const char*>(x + step * threads + t);
    if (step < steps) {
      if (plant == CopyPlant::misaligned)
        __pipeline_memcpy_async(to + 8, from, 16);
      else if (plant == CopyPlant::misaligned_source)
        __pipeline_memcpy_async(to, from + 4, 8);
      else if (plant == CopyPlant::wrong_size)
        __pipeline_memcpy_async(to, from, 12);
      else if (plant == CopyPlant::outside)
        __pipeline_memcpy_async(to + sizeof(uint4) * stages * threads, from, 16);
      else if (t % 3 == 0)
        __pipeline_memcpy_async(to, from, 16);
      else  // four bytes by themselves, eight, and four that are not read
        __pipeline_memcpy_async(to, from, 4), __pipeline_memcpy_async(to + 8, from + 8, 8),
            __pipeline_memcpy_async(to + 4, nullptr, 4, 4);
      if (plant == CopyPlant::overwritten && step == 3 && t == 5) ring[step % stages * threads + t].x = 1;
    }
    __pipeline_commit();  // also where there is nothing: the groups are counted
  };
  unsigned sum = 0;
  for (int step = 0; step < stages - (plant == CopyPlant::reused ? 0 : 1); ++step) fetch(step);
  for (int step = 0; step < steps; ++step) {
    if (plant != CopyPlant::reused) fetch(step + stages - 1);
    if (plant != CopyPlant::no_wait) __pipeline_wait_prior(stages - (plant == CopyPlant::late_wait ? 0 : 1));
    __syncthreads();
    const uint4 got = ring[step % stages * threads + (t + 1) % threads];
    sum += got.x + got.y + got.z + got.w;
    if (plant == CopyPlant::reused) fetch(step + stages);  // before others have read
    __syncthreads();
  }
  if (plant != CopyPlant::never_waited) __pipeline_wait_prior(0);
  if (plant == CopyPlant::never_waited && t == 7) {
    __pipeline_memcpy_async(ring + t, x + t, 16);
    __pipeline_commit();
  }
  atomicAdd(out, sum);
}

template <CopyPlant plant>
bool ring() {
  constexpr int kThreads = 64, kSteps = 7;
  std::vector<int> x(4 * kThreads * (kSteps + 1));
  auto* vectors = reinterpret_cast<uint4*>((reinterpret_cast<uintptr_t>(x.data()) + 15) / 16 * 16);
  for (int stages = 2; stages < 5; ++stages) {
    unsigned out = 0, sum = 0;
    for (unsigned i = 0; i < kThreads * kSteps; ++i) {
      vectors[i] = {i, 3 * i, 5 * i, 7 * i};
      sum += 13 * i + (i % kThreads % 3 == 0 ? 3 * i : 0);
    }
    MACH_LAUNCH(ring_kernel<plant>, 1, kThreads, kThreads * stages * sizeof(uint4), nullptr, vectors, kSteps,
                stages, &out);
    if (out != sum) return false;
  }
  return true;
}

enum class BlockPlant { none, no_fence, no_reader_fence, no_barrier, fence_late, same_word, own_counter };

// out = sum of x, x[i] = i + 1: a partial sum of each block, and the last block to arrive adds them up. The
// fence is each writer's, or after a barrier that of the thread which tells.
template <BlockPlant plant, bool by_one>
__global__ void last_block_kernel(const int* x, int n, int* partial, unsigned* arrived, int* out) {
  int* shared = dynamic_shared<int>();
  const int blocks = static_cast<int>(gridDim.x), t = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x), i = static_cast<int>(blockIdx.x) * threads + t;
  const int sum = warp_sum(i < n ? x[i] : 0);
  if (lane_id() == 0) partial[blockIdx.x * (threads / kWarp) + warp_id()] = sum;
  if (plant == BlockPlant::same_word && t == 0) *out = static_cast<int>(blockIdx.x);
  if (!by_one && plant != BlockPlant::no_fence) __threadfence();
  __syncthreads();
  if (t == 0) {
    if (by_one && plant != BlockPlant::no_fence && plant != BlockPlant::fence_late) __threadfence();
    shared[0] = static_cast<int>(atomicAdd(arrived, 1u));
    if (plant == BlockPlant::fence_late) __threadfence();
    if (by_one && plant != BlockPlant::no_reader_fence) __threadfence();
  }
  __syncthreads();
  if (shared[0] != blocks - 1) return;
  if (!by_one && plant != BlockPlant::no_reader_fence) __threadfence();
  int total = 0;
  for (int j = t; j < blocks * (threads / kWarp); j += threads) total += partial[j];
  atomicAdd(out, total);
  if (t == 0) *arrived = 0;  // after all others
}

template <BlockPlant plant, bool by_one>
bool last_block() {
  constexpr int kThreads = 64, kBlocks = 5, n = kThreads * kBlocks - 7;
  std::vector<int> x(n), partial(kBlocks * kThreads / kWarp);
  unsigned arrived = 0;
  for (int i = 0; i < n; ++i) x[i] = i + 1;
  for (int times = 0; times < 2; ++times) {
    int out = 0;
    MACH_LAUNCH((last_block_kernel<plant, by_one>), kBlocks, kThreads, sizeof(int), nullptr, x.data(), n,
                partial.data(), &arrived, &out);
    if (out != n * (n + 1) / 2 || arrived != 0) return false;
  }
  return true;
}

// out = how many threads of all blocks are i modulo 8: bins that blocks add to, and the last one takes away.
template <BlockPlant plant>
__global__ void bins_kernel(unsigned* bins, unsigned* arrived, unsigned* out) {
  unsigned* shared = dynamic_shared<unsigned>();
  atomicAdd(&bins[threadIdx.x % 8], 1u);
  if (plant != BlockPlant::no_fence) __threadfence();
  if (plant != BlockPlant::no_barrier) __syncthreads();
  if (threadIdx.x == 0) *shared = atomicAdd(arrived, 1u);
  __syncthreads();
  if (*shared != gridDim.x - 1) return;
  if (plant != BlockPlant::no_reader_fence) __threadfence();
  if (threadIdx.x < 8) out[threadIdx.x] = atomicExch(&bins[threadIdx.x], 0u);
}

template <BlockPlant plant>
bool add_bins() {
  std::vector<unsigned> bins(8), out(8);
  unsigned arrived = 0;
  MACH_LAUNCH(bins_kernel<plant>, 6, 64, sizeof(unsigned), nullptr, bins.data(), &arrived, out.data());
  for (unsigned i = 0; i < 8; ++i)
    if (bins[i] != 0 || out[i] != 48) return false;
  return true;
}

// Each block counts in shared memory, with a barrier between its steps, and tells once; or all of them in
// one word that they read and write in two steps.
template <BlockPlant plant>
__global__ void count_kernel(int* count, int steps) {
  int* own = dynamic_shared<int>();
  if (threadIdx.x == 0) *own = 0;
  for (int i = 0; i < steps; ++i) {
    __syncthreads();
    if (threadIdx.x != 0) continue;
    if (plant == BlockPlant::own_counter)
      *own += 1;
    else
      atomicExch(count, atomicAdd(count, 0) + 1);
  }
  if (plant == BlockPlant::own_counter && threadIdx.x == 0) atomicAdd(count, *own);
}

template <BlockPlant plant>
bool count_blocks() {
  int count = 0;
  MACH_LAUNCH(count_kernel<plant>, 20, 32, sizeof(int), nullptr, &count, 10);
  return count == 200;
}

// The halves of a word are each written by another block; rows of bfloat16 may be cut like that.
__global__ void halves_kernel(unsigned short* x) {
  if (threadIdx.x < 9) x[9 * blockIdx.x + threadIdx.x] = static_cast<unsigned short>(threadIdx.x);
}

bool halves() {
  std::vector<unsigned short> x(9 * 7);
  MACH_LAUNCH(halves_kernel, 7, 32, 0, nullptr, x.data());
  for (int i = 0; i < 9 * 7; ++i)
    if (x[i] != i % 9) return false;
  return true;
}

__global__ void unwritten_kernel(float* out) { out[threadIdx.x] = dynamic_shared<float>()[threadIdx.x]; }

bool unwritten() {
  std::vector<float> out(32);
  for (int i = 0; i < 2; ++i) MACH_LAUNCH(unwritten_kernel, 2, 32, 128, nullptr, out.data());
  for (float x : out)
    if (x == x) return true;
  return false;
}

__global__ void nowhere_kernel(int* p) { p[threadIdx.x] = 1; }

bool nowhere() {
  MACH_LAUNCH(nowhere_kernel, 1, 32, 0, nullptr, reinterpret_cast<int*>(64));
  return true;
}

__global__ void deep_kernel(int* out) {
  volatile char local[300 << 10];
  local[threadIdx.x] = 1;
  *out += local[threadIdx.x];
}

bool deep() {
  int out = 0;
  MACH_LAUNCH(deep_kernel, 1, 32, 0, nullptr, &out);
  return out == 32;
}

// A thread that waits for what another writes, or nobody.
template <bool comes>
__global__ void wait_kernel(int* number) {
  if (comes && threadIdx.x == 40) atomicExch(number, 1);
  while (threadIdx.x == 3 && atomicAdd(number, 0) == 0) {
  }
}

template <bool comes>
bool wait() {
  int number = 0;
  MACH_LAUNCH(wait_kernel<comes>, 2, 64, 0, nullptr, &number);
  return number == 1;
}

__global__ void empty_kernel(int* out) { atomicExch(out, 1); }

bool limits() {
  int out = 0;
  const auto error = [&](dim3 grid, dim3 block, size_t shared) {
    return MACH_LAUNCH(empty_kernel, grid, block, shared, nullptr, &out);
  };
  return error(1, 1024, 227 << 10) == cudaSuccess && error(dim3(1, 1, 65535), 1, 0) == cudaSuccess &&
         out == 1 && error(0, 32, 0) == cudaErrorInvalidConfiguration &&
         error(1, 0, 0) == cudaErrorInvalidConfiguration &&
         error(dim3(1, 0), 32, 0) == cudaErrorInvalidConfiguration &&
         error(1, 1025, 0) == cudaErrorInvalidConfiguration &&
         error(1, dim3(32, 33), 0) == cudaErrorInvalidConfiguration &&
         error(1, dim3(1, 1, 65), 0) == cudaErrorInvalidConfiguration &&
         error(dim3(1, 65536), 32, 0) == cudaErrorInvalidConfiguration &&
         error(dim3(1, 1, 65536), 32, 0) == cudaErrorInvalidConfiguration &&
         error(1, 32, (227 << 10) + 1) == cudaErrorInvalidValue;
}

// Where the blocks and threads of every shape are, each once.
__global__ void shape_kernel(int* count) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  ++count[block * blockDim.x * blockDim.y * blockDim.z + thread];
}

bool shapes() {
  for (const dim3 grid : {dim3(1), dim3(2), dim3(3), dim3(7), dim3(2, 3, 4), dim3(1, 5)})
    for (const dim3 block : {dim3(1), dim3(33), dim3(4, 3, 2)}) {
      const size_t n = size_t{1} * grid.x * grid.y * grid.z * block.x * block.y * block.z;
      std::vector<int> count(n);
      MACH_LAUNCH(shape_kernel, grid, block, 0, nullptr, count.data());
      for (int c : count)
        if (c != 1) return false;
    }
  return true;
}

// A launch that fails, and the next one works.
bool again() {
  for (int i = 0; i < 3; ++i) {
    try {
      block_sum<Plant::half>(128, 128);
      return false;
    } catch (const std::runtime_error&) {
    }
    if (!block_sum<Plant::none>(128, 128) || !collectives()) return false;
  }
  return true;
}

__global__ void switches_kernel(int times) {
  for (int i = 0; i < times; ++i) __syncthreads();
}
__global__ void sums_kernel(int times, int* out) {
  int x = lane_id();
  for (int i = 0; i < times; ++i) x = warp_sum(x) & 15;
  out[threadIdx.x] = x;
}
__global__ void straight_kernel(int* out) { out[threadIdx.x] += 1; }

// A warp reads a matrix of eight rows of 16 bytes, four times: all its rows where they may not lie.
enum class RowPlant { none, misaligned, elsewhere };
template <RowPlant plant>
__global__ void matrices_kernel(const uint32_t* outside, uint32_t* out) {
  uint32_t* shared = dynamic_shared<uint32_t>();
  const int lane = lane_id();
  for (int i = lane; i < 40; i += 32) shared[i] = static_cast<uint32_t>(i);
  __syncwarp();
  const uint32_t* row = shared + 4 * (lane % 8);
  if (plant == RowPlant::misaligned) row += 2;
  if (plant == RowPlant::elsewhere) row = outside + 4 * (lane % 8);
  uint32_t loaded[4];
  load_matrices(loaded, row);
  out[lane] = loaded[3];
}
template <RowPlant plant>
bool matrices() {
  alignas(16) uint32_t x[32];
  uint32_t out[32];
  for (uint32_t i = 0; i < 32; ++i) x[i] = i;
  MACH_LAUNCH(matrices_kernel<plant>, 1, 32, 160, nullptr, x, out);
  return std::memcmp(x, out, sizeof x) == 0;
}

// A thread reads what it wrote, through a cache that need not have it.
__global__ void own_word_kernel(const int* in, int* out) {
  out[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] += __ldg(out + threadIdx.x);
}
bool own_word() {
  std::vector<int> x(32, 1), out(32);
  MACH_LAUNCH(own_word_kernel, 1, 32, 0, nullptr, x.data(), out.data());
  MACH_LAUNCH(own_word_kernel, 1, 32, 0, nullptr, out.data(), x.data());
  return x == std::vector<int>(32, 4);
}

// Work on a stream that another one has replaced.
bool old_stream() {
  const cudaStream_t stream = mach_shim::current_stream();
  mach_shim::change_stream();
  return MACH_LAUNCH(straight_kernel, 1, 1, 0, stream, nullptr) == cudaSuccess;
}

// Nanoseconds: of a thread at a barrier; of a thread at a shuffle; of a thread that waits for none.
bool speed() {
  std::vector<int> out(1024);
  const auto time = [](double count, auto&& f) {
    double best = 1e9;
    for (int i = 0; i < 5; ++i) {
      const auto start = std::chrono::steady_clock::now();
      f();
      best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    std::printf("%.1f ", best / count * 1e9);
  };
  time(256 * 1000., [] { MACH_LAUNCH(switches_kernel, 1, 256, 0, nullptr, 1000); });
  time(256 * 200 * 5., [&] { MACH_LAUNCH(sums_kernel, 1, 256, 0, nullptr, 200, out.data()); });
  time(256 * 1000., [&] { MACH_LAUNCH(straight_kernel, 1000, 256, 0, nullptr, out.data()); });
  return true;
}

const std::map<std::string, bool (*)()> cases = {
    {"block_sum", [] { return block_sum<Plant::none>(128, 128) && block_sum<Plant::none>(512, 512); }},
    {"turn", [] { return turn<Plant::none>(); }},
    {"collectives", collectives},
    {"collect", collect<true>},
    {"ring", ring<CopyPlant::none>},
    {"matrices", matrices<RowPlant::none>},
    {"matrices_misaligned", matrices<RowPlant::misaligned>},
    {"matrices_elsewhere", matrices<RowPlant::elsewhere>},
    {"old_stream", old_stream},
    {"own_word", own_word},
    {"copy_no_wait", ring<CopyPlant::no_wait>},
    {"copy_late_wait", ring<CopyPlant::late_wait>},
    {"copy_never_waited", ring<CopyPlant::never_waited>},
    {"copy_misaligned", ring<CopyPlant::misaligned>},
    {"copy_misaligned_source", ring<CopyPlant::misaligned_source>},
    {"copy_wrong_size", ring<CopyPlant::wrong_size>},
    {"copy_outside", ring<CopyPlant::outside>},
    {"copy_overwritten", ring<CopyPlant::overwritten>},
    {"copy_reused", ring<CopyPlant::reused>},
    {"last_block", [] { return last_block<BlockPlant::none, false>(); }},
    {"last_block_by_one", [] { return last_block<BlockPlant::none, true>(); }},
    {"missing_fence", [] { return last_block<BlockPlant::no_fence, false>(); }},
    {"missing_fence_by_one", [] { return last_block<BlockPlant::no_fence, true>(); }},
    {"missing_fence_reader", [] { return last_block<BlockPlant::no_reader_fence, false>(); }},
    {"missing_fence_reader_by_one", [] { return last_block<BlockPlant::no_reader_fence, true>(); }},
    {"late_fence", [] { return last_block<BlockPlant::fence_late, true>(); }},
    {"same_word", [] { return last_block<BlockPlant::same_word, false>(); }},
    {"add_bins", add_bins<BlockPlant::none>},
    {"add_bins_without_fence", add_bins<BlockPlant::no_fence>},
    {"add_bins_without_reader_fence", add_bins<BlockPlant::no_reader_fence>},
    {"add_bins_without_barrier", add_bins<BlockPlant::no_barrier>},
    {"count_blocks", count_blocks<BlockPlant::own_counter>},
    {"count_blocks_in_two_steps", count_blocks<BlockPlant::none>},
    {"halves", halves},
    {"wait", wait<true>},
    {"wait_in_vain", wait<false>},
    {"unwritten", unwritten},
    {"limits", limits},
    {"shapes", shapes},
    {"again", again},
    {"speed", speed},
    {"missing_barrier", [] { return block_sum<Plant::barrier>(128, 128); }},
    {"missing_syncwarp", [] { return turn<Plant::warp>(); }},
    {"collect_in_two_steps", collect<false>},
    {"divergent_half", [] { return block_sum<Plant::half>(128, 128); }},
    {"divergent_other", [] { return block_sum<Plant::other_barrier>(128, 128); }},
    {"divergent_ended", [] { return block_sum<Plant::ended>(128, 128); }},
    {"mask_without_self", [] { return turn<Plant::own_lane>(); }},
    {"mask_of_others", [] { return turn<Plant::lanes>(); }},
    {"mask_of_none", [] { return turn<Plant::none>(48); }},
    {"before", [] { return block_sum<Plant::before>(128, 128); }},
    {"behind", [] { return block_sum<Plant::behind>(128, 128); }},
    {"behind_in_padding", [] { return block_sum<Plant::none>(128, 127); }},
    {"far_behind", [] { return block_sum<Plant::far>(128, 128); }},
    {"loaded_behind", [] { return block_sum<Plant::loaded>(128, 128); }},
    {"nowhere", nowhere},
    {"deep", deep},
    {"too_many_threads", [] { return block_sum<Plant::none>(1056, 1056); }},
    {"too_much_shared", [] { return block_sum<Plant::none>(128, 58113); }},
};

}  // namespace
}  // namespace mach

int main(int, char** argv) {
  for (int seed = 0; seed < std::atoi(argv[2]); ++seed) {
    mach_shim_set_seed(seed);
    std::string outcome;
    try {
      outcome = mach::cases.at(argv[1])() ? "right" : "wrong";
    } catch (const std::runtime_error& error) {
      outcome = error.what();
    }
    for (size_t at; (at = outcome.find('\n')) != std::string::npos;) outcome.replace(at, 1, " |");
    std::puts(outcome.c_str());
  }
}
