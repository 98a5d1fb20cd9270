// The emulation of ldmatrix and mma.sync (csrc/cuda/mma.cuh) against plain loops, for tests/ops/test_mma.py.
//   mma CASE SEEDS    one line for each seed 0 ... SEEDS - 1: "right" or "wrong"
// Which lane holds what is written here as the PTX ISA says it, element by element, and shares no code with
// mma.cuh: groupID is lane >> 2, threadID_in_group is lane % 4.
#include "../../csrc/cuda/mma.cuh"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "cuda_bf16.h"

extern "C" void mach_shim_set_seed(uint64_t seed);

namespace mach {
namespace {

struct At {
  int row, column;
};
// Element i of a lane's eight of A [16, 16], four of B [16, 8], four of D [16, 8].
At place_of_a(int lane, int i) {
  return {i < 2 || (i >= 4 && i < 6) ? lane >> 2 : (lane >> 2) + 8,
          i < 4 ? lane % 4 * 2 + (i & 1) : lane % 4 * 2 + (i & 1) + 8};
}
At place_of_b(int lane, int i) {
  return {i < 2 ? lane % 4 * 2 + (i & 1) : lane % 4 * 2 + (i & 1) + 8, lane >> 2};
}
At place_of_d(int lane, int i) { return {i < 2 ? lane >> 2 : (lane >> 2) + 8, lane % 4 * 2 + (i & 1)}; }

struct Matrices {
  float a[16][16], b[16][8], d[16][8];
};

uint32_t pair_of(float low, float high) {
  return uint32_t{__nv_bfloat16(high).bits} << 16 | __nv_bfloat16(low).bits;
}

__global__ void multiply_kernel(Matrices* m) {
  const int lane = lane_id();
  uint32_t a[4], b[2];
  float d[4], element[8];
  for (int i = 0; i < 8; ++i) element[i] = m->a[place_of_a(lane, i).row][place_of_a(lane, i).column];
  for (int i = 0; i < 4; ++i) a[i] = pair_of(element[2 * i], element[2 * i + 1]);
  for (int i = 0; i < 4; ++i) element[i] = m->b[place_of_b(lane, i).row][place_of_b(lane, i).column];
  for (int i = 0; i < 2; ++i) b[i] = pair_of(element[2 * i], element[2 * i + 1]);
  for (int i = 0; i < 4; ++i) d[i] = m->d[place_of_d(lane, i).row][place_of_d(lane, i).column];
  multiply_add(d, a, b);
  for (uint32_t& x : a) x = 0x7fc07fc0;  // NaN, for whoever reads a register of another lane late
  for (uint32_t& x : b) x = 0x7fc07fc0;
  float other[4] = {};
  multiply_add(other, a, b);
  for (int i = 0; i < 4; ++i) m->d[place_of_d(lane, i).row][place_of_d(lane, i).column] = d[i];
}

// Each entry: its products in ascending k, one after the other, each sum rounded.
bool is_product(Matrices m) {
  float expected[16][8];
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      expected[i][j] = m.d[i][j];
      for (int k = 0; k < 16; ++k) expected[i][j] += m.a[i][k] * m.b[k][j];
    }
  MACH_LAUNCH(multiply_kernel, 1, 32, 0, nullptr, &m);
  return std::memcmp(expected, m.d, sizeof expected) == 0;
}

// A and B with a single one each: D has a single one, or none.
bool units() {
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 16; ++k)
      for (int j = 0; j < 8; ++j)
        for (int other : {k, (k + 5) % 16}) {
          Matrices m = {};
          m.a[i][k] = m.b[other][j] = 1;
          if (!is_product(m)) return false;
        }
  return true;
}

bool products() {
  std::mt19937 generator(0);
  std::normal_distribution<float> normal;
  for (int round = 0; round < 20; ++round) {
    Matrices m;
    for (auto& row : m.a)
      for (float& x : row) x = __nv_bfloat16(normal(generator));
    for (auto& row : m.b)
      for (float& x : row) x = __nv_bfloat16(normal(generator));
    for (auto& row : m.d)
      for (float& x : row) x = 100 * normal(generator);
    if (!is_product(m)) return false;
  }
  return true;
}

// Four matrices whose element (row, column) of matrix i is 64 i + 8 row + column, rows in a scrambled order.
__global__ void load_kernel(int* failures) {
  uint16_t* shared = dynamic_shared<uint16_t>();  // [32 rows, 8]
  const auto slot = [](int row) { return row * 13 % 32; };
  for (int i = lane_id(); i < 256; i += 32) shared[slot(i / 8) * 8 + i % 8] = static_cast<uint16_t>(i);
  __syncwarp();
  uint32_t out[4];
  load_matrices(out, shared + slot(lane_id()) * 8);
  for (uint32_t i = 0; i < 4; ++i)
    for (uint32_t half = 0; half < 2; ++half) {
      const uint32_t row = lane_id() >> 2, column = lane_id() % 4 * 2 + half;
      if ((out[i] >> (16 * half) & 0xffff) != 64 * i + 8 * row + column) atomicAdd(failures, 1);
    }
}

bool loads() {
  int failures = 0;
  MACH_LAUNCH(load_kernel, 1, 32, 512, nullptr, &failures);
  return failures == 0;
}

const std::map<std::string, bool (*)()> cases = {{"units", units}, {"products", products}, {"loads", loads}};

}  // namespace
}  // namespace mach

int main(int, char** argv) {
  for (int seed = 0; seed < std::atoi(argv[2]); ++seed) {
    mach_shim_set_seed(seed);
    std::puts(mach::cases.at(argv[1])() ? "right" : "wrong");
  }
}
