// The decode of the original MACH, as published (Medini et al., NeurIPS 2019), as a baseline: a dense float
// buffer batch x L, the scores of one repetition after the other added to it, then a heap for the top k of
// each document. Documents are shared out over threads. Compiled by bench_merge_topk.py, called through
// ctypes.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <queue>
#include <thread>
#include <utility>
#include <vector>

namespace {

void decode(const float* scores, const int32_t* buckets, int64_t R, int64_t B, int64_t L, int64_t k,
            float* buffer, float* values, int64_t* labels, int64_t begin, int64_t end) {
  using Entry = std::pair<float, int64_t>;  // (score, -label): of equal scores the lowest label wins
  for (int64_t n = begin; n < end; ++n) {
    float* sum = buffer + n * L;
    std::fill(sum, sum + L, 0.0f);
    for (int64_t r = 0; r < R; ++r) {
      const float* row = scores + (n * R + r) * B;
      const int32_t* bucket = buckets + r * L;
      for (int64_t l = 0; l < L; ++l) sum[l] += row[bucket[l]];
    }
    std::priority_queue<Entry, std::vector<Entry>, std::greater<Entry>> best;
    for (int64_t l = 0; l < L; ++l) {
      if (int64_t(best.size()) < k) {
        best.emplace(sum[l], -l);
      } else if (sum[l] > best.top().first) {
        best.pop();
        best.emplace(sum[l], -l);
      }
    }
    for (int64_t i = k; i-- > 0; best.pop()) {
      values[n * k + i] = best.top().first / float(R);
      labels[n * k + i] = -best.top().second;
    }
  }
}

}  // namespace

// scores [N, R, B], buckets [R, L] -> values, labels [N, k]; buffer [N, L] is scratch. k <= L.
extern "C" void original_mach(const float* scores, const int32_t* buckets, int64_t N, int64_t R, int64_t B,
                              int64_t L, int64_t k, float* buffer, float* values, int64_t* labels,
                              int64_t threads) {
  std::vector<std::thread> pool;
  for (int64_t t = 0; t < threads; ++t) {
    pool.emplace_back(decode, scores, buckets, R, B, L, k, buffer, values, labels, N * t / threads,
                      N * (t + 1) / threads);
  }
  for (auto& thread : pool) thread.join();
}

// The clock of this core: a chain of additions, each waiting for the one before, one cycle each.
extern "C" double cycles_per_second() {
  const int64_t count = 20'000'000;
  uint64_t x = 1;
  const auto start = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < count; ++i) {
    x += i;
    asm volatile("" : "+r"(x));  // keeps the compiler from summing the chain in its head
  }
  return count / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}
