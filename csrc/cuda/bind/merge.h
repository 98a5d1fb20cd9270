// Checks the devices of the arguments of merge_scores and merge_topk, and turns them into what kernels take.
#pragma once

#include <string>

#include "../merge_scores.cuh"
#include "tensors.h"

namespace mach {

inline MergeArguments merge_arguments_on_device(const char* op, const Tensor& scores, const Tensor& buckets,
                                                const std::string& merge) {
  check_device(op, scores, {buckets});
  return merge_arguments(op, scores, buckets, merge);
}

template <class T>
MergeInput<T> merge_input(const MergeArguments& a) {
  return {pointer<T>(a.scores),
          a.scores.stride(0),
          a.scores.stride(1),
          pointer<int32_t>(a.buckets),
          a.N(),
          a.R(),
          a.B(),
          a.L(),
          a.merge};
}

}  // namespace mach
