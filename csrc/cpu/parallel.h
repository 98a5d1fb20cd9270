// Splits an operator's work over the threads of PyTorch's pool.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>

#include "tasks.h"

namespace mach {

// Fewer elementary operations than this are not worth a second thread.
constexpr int64_t kSerialWork = 1 << 15;

inline int64_t num_threads_for(int64_t work) {
  return work < kSerialWork ? 1 : static_cast<int64_t>(torch::stable::get_num_threads());
}

// Runs task(0) ... task(count - 1), each once, on the threads of PyTorch's pool. An exception of a task is
// thrown here after all tasks have ended, because parallel_for would lose its message.
template <class F>
void run_tasks(int64_t count, const F& task) {
  if (count == 1) return task(0);
  std::exception_ptr error;
  std::atomic_flag taken = ATOMIC_FLAG_INIT;
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    try {
      for (int64_t i = begin; i < end; ++i) task(i);
    } catch (...) {
      if (!taken.test_and_set()) error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

// run_tasks in the form that code without torch takes.
inline Tasks pool() {
  return [](int64_t count, const auto& task) { run_tasks(count, task); };
}

// f(begin, end) on consecutive ranges of [0, count), one a thread.
template <class F>
void parallel_ranges(int64_t count, int64_t work, const F& f) {
  const int64_t parts = std::max<int64_t>(1, std::min(count, num_threads_for(work)));
  run_tasks(parts, [&](int64_t i) { f(count * i / parts, count * (i + 1) / parts); });
}

// Start of range i when [0, count) is cut into `parts` ranges of about equal weight; prefix[u] is the weight
// of the units before u.
inline int64_t balanced_bound(const int64_t* prefix, int64_t count, int64_t parts, int64_t i) {
  if (i == parts) return count;
  const int64_t target = prefix[0] + (prefix[count] - prefix[0]) * i / parts;
  return std::lower_bound(prefix, prefix + count, target) - prefix;
}

// parallel_ranges with ranges of about equal weight.
template <class F>
void parallel_balanced(const int64_t* prefix, int64_t count, int64_t work, const F& f) {
  const int64_t parts = num_threads_for(work);
  run_tasks(parts, [&](int64_t i) {
    f(balanced_bound(prefix, count, parts, i), balanced_bound(prefix, count, parts, i + 1));
  });
}

}  // namespace mach
