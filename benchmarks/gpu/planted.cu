// Kernels with a mistake each, which compute-sanitizer must find: a checker that finds none of them works not
// at all on this machine, or its filter lets our kernels through unseen.
//
//   nvcc -lineinfo -arch=native benchmarks/gpu/planted.cu -o planted
//   compute-sanitizer --tool memcheck ./planted memcheck
//   compute-sanitizer --tool racecheck ./planted racecheck
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>

namespace mach {  // as all kernels of mach_ext: the filter goes by it

// Writes one element past the end of an allocation.
__global__ void past_the_end_kernel(float* data, int size) {
  const int i = static_cast<int>(threadIdx.x);
  if (i <= size) data[i] = 1;
}

// Threads of two warps write and read an element with no barrier between.
__global__ void no_barrier_kernel(int* out) {
  __shared__ int turn[64];
  turn[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = turn[(threadIdx.x + 32) % 64];
}

}  // namespace mach

int main(int count, char** arguments) {
  if (count < 2) return 2;
  void* memory;
  if (cudaMalloc(&memory, 64 * sizeof(float)) != cudaSuccess) return 3;
  if (std::strcmp(arguments[1], "memcheck") == 0)
    mach::past_the_end_kernel<<<1, 128>>>(static_cast<float*>(memory), 64);
  else
    mach::no_barrier_kernel<<<1, 64>>>(static_cast<int*>(memory));
  std::printf("%s\n", cudaGetErrorString(cudaDeviceSynchronize()));
  return 0;
}
