// What a GPU can do at most, measured, for the floors of bench_cuda.py: prints one JSON object, bytes/s.
//
//   hbm_copy        1 GiB read and 1 GiB written, 16 bytes a thread, both counted
//   l2_gather       random 64-byte rows, 4 lanes each, out of a table of 16 MB that stays in L2
//   hbm_gather      the same rows out of 16 GiB, or out of what a smaller GPU has room for
//   row_gather      random rows of 1 KiB, a warp each, out of the same: what sparse_linear does
//   shared_gather   random 16-byte entries of a 32 KB table in shared memory: what merge_topk does
//
//   nvcc -O3 -arch=native benchmarks/ceilings.cu -o ceilings && ./ceilings
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace {

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "ceilings: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

__global__ void copy(const uint4* from, uint4* to, int64_t count) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride)
    to[i] = from[i];
}

// Numbers that differ from lane to lane and call to call without memory traffic.
__device__ uint32_t scramble(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ x >> 16;
}

__global__ void fill(uint4* to, int64_t count) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    const uint32_t x = scramble(static_cast<uint32_t>(i));
    to[i] = make_uint4(x, x * 3u, x * 5u, x * 7u);
  }
}

// Groups of `lanes` threads read random rows of lanes * 16 bytes, eight in flight.
__global__ void gather(const uint4* table, uint32_t rows, int lanes, int steps, uint32_t* sink) {
  const uint32_t thread = blockIdx.x * blockDim.x + threadIdx.x;
  const uint32_t group = thread / lanes, lane = thread % lanes;
  uint32_t sum = 0;
  for (int s = 0; s < steps; ++s) {
    uint4 v[8];
#pragma unroll
    for (int i = 0; i < 8; ++i)
      v[i] = table[static_cast<int64_t>(__umulhi(scramble(group * 977u + s * 8 + i), rows)) * lanes + lane];
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += v[i].x + v[i].y + v[i].z + v[i].w;
  }
  if (sum == 0x12345678u) *sink = sum;
}

__global__ void shared_gather(uint32_t entries, int steps, uint32_t* sink) {
  extern __shared__ uint4 entry[];
  for (uint32_t i = threadIdx.x; i < entries; i += blockDim.x) entry[i] = make_uint4(i, i, i, i);
  __syncthreads();
  uint32_t at = scramble(blockIdx.x * blockDim.x + threadIdx.x), sum = 0;
  for (int s = 0; s < steps; ++s) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      at = at * 1664525u + 1013904223u;
      const uint4 v = entry[__umulhi(at, entries)];
      sum += v.x + v.y + v.z + v.w;
    }
  }
  if (sum == 0x12345678u) *sink = sum;
}

// Seconds of the fastest of 10 calls, after one to warm up.
template <class F>
double fastest(const F& launch) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  float best = 1e30f;
  for (int i = 0; i < 11; ++i) {
    check(cudaEventRecord(begin), "record");
    launch();
    check(cudaGetLastError(), "launch");
    check(cudaEventRecord(end), "record");
    check(cudaEventSynchronize(end), "run");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end), "time");
    if (i > 0) best = std::min(best, ms);
  }
  return best * 1e-3;
}

}  // namespace

int main() {
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0), "device");
  constexpr int64_t kGiB = int64_t(1) << 30;
  size_t free, all;
  check(cudaMemGetInfo(&free, &all), "memory");
  const int64_t room = static_cast<int64_t>(free) * 3 / 4 / kGiB * kGiB;
  const int64_t table = std::max(2 * kGiB, std::min(16 * kGiB, room));
  uint4* memory;
  uint32_t* sink;
  check(cudaMalloc(&memory, table), "the table");
  check(cudaMalloc(&sink, 4), "sink");
  // Not zeros, of which hardware may move more.
  fill<<<device.multiProcessorCount * 8, 256>>>(memory, table / 16);
  check(cudaDeviceSynchronize(), "fill");
  const int blocks = device.multiProcessorCount * 8, threads = 256;

  const double copied = fastest([&] { copy<<<blocks, threads>>>(memory, memory + kGiB / 16, kGiB / 16); });
  const auto gathered = [&](int64_t bytes, int lanes) {
    constexpr int kSteps = 64;
    const double seconds = fastest([&] {
      gather<<<blocks, threads>>>(memory, static_cast<uint32_t>(bytes / (16 * lanes)), lanes, kSteps, sink);
    });
    return static_cast<double>(blocks) * threads * kSteps * 8 * 16 / seconds;
  };
  const double l2 = gathered(16 << 20, 4), hbm = gathered(table, 4), rows = gathered(table, 64);
  constexpr int kEntries = 2048, kSteps = 512;
  const double shared = static_cast<double>(blocks) * threads * kSteps * 8 * 16 / fastest([&] {
                          shared_gather<<<blocks, threads, kEntries * 16>>>(kEntries, kSteps, sink);
                        });
  std::printf(
      "{\"hbm_copy\": %.4g, \"l2_gather\": %.4g, \"hbm_gather\": %.4g, \"row_gather\": %.4g, "
      "\"shared_gather\": %.4g}\n",
      2.0 * kGiB / copied, l2, hbm, rows, shared);
  return 0;
}
